"""Feature maps of a frozen backbone, and the patch embeddings made of them."""
