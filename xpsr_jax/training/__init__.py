"""A training run: what trains, what is minimised, the step, the loop, checkpoints, the exported model."""
