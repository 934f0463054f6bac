"""CARP (arXiv 2412.06782): an action chunk is tokenised at several time scales and predicted coarse to fine."""
