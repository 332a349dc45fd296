"""The prepare pipeline: from a ledger file to tokenized splits."""

from account_tax.pipelines.prepare.pipeline import create_pipeline

__all__ = ["create_pipeline"]
