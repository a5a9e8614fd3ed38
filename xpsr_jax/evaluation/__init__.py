"""Measures the quality of restored images against their originals: PSNR, SSIM, LPIPS and DISTS."""
