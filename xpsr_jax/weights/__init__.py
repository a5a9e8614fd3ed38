"""Reads, converts and writes weights: files of PyTorch, Flax and Orbax, and model folders."""
