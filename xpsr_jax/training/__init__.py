"""A training run: trained parameters, losses, the step, the loop, checkpoints, the exported model."""
