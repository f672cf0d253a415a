"""Image AUROC, pixel AUROC, AUPRO and AUPIMO, and what is right at a threshold, streamed."""
