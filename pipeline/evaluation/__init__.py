"""Image AUROC, pixel AUROC and AUPRO, streamed."""
