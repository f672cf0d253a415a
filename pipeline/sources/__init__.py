"""What there is to ingest: folders of pictures and manifests, as images to pack."""
