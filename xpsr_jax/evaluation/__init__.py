"""How good a restored image is, against the image it should have been: PSNR, SSIM, LPIPS and DISTS."""
