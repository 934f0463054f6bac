"""Locomotion against a learned disturber, under an H-infinity constraint (arXiv 2404.14405)."""
