"""What a lake's rows are and mean: columns, images, splits, labels, and a job's fragments."""
