"""Reviews: what people decided on images, as it is written, read and summed up."""
