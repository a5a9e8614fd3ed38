"""Compiles programs for a TPU pod without having one, and estimates their memory and time (docs/train/pod.md)."""
