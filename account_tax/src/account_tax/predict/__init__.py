"""Predict: a ledger file in, the same rows with accounts and scores out."""
