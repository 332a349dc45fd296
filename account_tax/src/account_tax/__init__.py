"""A training recipe that files ledger lines under tax accounts."""

__version__ = "0.1.0"
