"""PAD (arXiv 2411.18179): future pictures and future poses are denoised together by one transformer."""
