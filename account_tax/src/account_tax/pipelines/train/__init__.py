"""Train: tokenized datasets in, adapter and training metrics out."""

from .pipeline import create_pipeline

__all__ = ["create_pipeline"]
