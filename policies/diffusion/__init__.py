"""Diffusion Policy (arXiv 2303.04137): a conditional 1-D UNet that denoises a chunk of actions."""
