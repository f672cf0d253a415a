"""Folders by URI: disks, S3, web servers, whatever fsspec opens; atomic puts and listings."""
