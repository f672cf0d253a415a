"""patchlake's pipeline: the tree follows the dataflow, and imports point one way."""
