"""Train: tokenized datasets in, adapter and training metrics out."""
