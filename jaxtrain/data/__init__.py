"""Data sources, input pipelines and augmentation."""
