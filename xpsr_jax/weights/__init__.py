"""Weights in and out: PyTorch's files and model folders."""
