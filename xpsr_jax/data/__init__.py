"""Training data: photographs and captions, the degradation that makes LR images, and batches."""
