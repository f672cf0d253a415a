"""What is done to one fragment, free of Ray."""
