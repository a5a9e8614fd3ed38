"""Compiling for a TPU pod without one: what a program would need and take there (docs/train/pod.md)."""
