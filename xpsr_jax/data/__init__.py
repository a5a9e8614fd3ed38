"""Training data: photographs, their captions, the degradation that makes LR images of them, and batches of it all."""
