"""Register: evaluate the test split, then put a verified version into the Model Registry."""

from .pipeline import create_pipeline

__all__ = ["create_pipeline"]
