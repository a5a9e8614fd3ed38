"""The diffusion process: noise schedule, samplers, classifier-free guidance."""
