"""The two ways to run stages over fragments: in this process, or on Ray."""
