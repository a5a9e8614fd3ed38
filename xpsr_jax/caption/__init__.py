"""Captions for images: by LLaVA, by a model behind a server, or from measurements."""
