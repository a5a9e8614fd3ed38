"""Restores image files: sizes, prompts, sampling, colours (method §7, §8)."""
