"""Streaming Diffusion Policy (arXiv 2406.04806): a buffer of ever noisier actions that outlives observations."""
