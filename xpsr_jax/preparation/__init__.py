"""Preparation of data before training: stored photographs, ready-made pairs, text embeddings."""
