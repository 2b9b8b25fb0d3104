"""The store of embeddings: each image passes through a backbone once."""
