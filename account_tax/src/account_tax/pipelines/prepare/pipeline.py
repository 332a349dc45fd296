"""The wiring of the prepare pipeline."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node

from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import load_base_tokenizer, read_seen_ledger, tokenize_splits

from .nodes import describe_dataset, fit_split_ngrams

DATA, MODEL = "params:data", "params:train.model"
KEPT = (DATA, "params:train")


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline; `dataset_metadata` is written last, so a version that has it is whole.

    The tokenizer waits for the label names: a ledger that is refused leaves nothing written.
    """
    return Pipeline(
        [
            node(read_seen_ledger, [DATA, MODEL], "ledger", name="read_ledger_node"),
            node(
                split_ledger,
                ["ledger", DATA],
                ["ledger_splits", "label_names"],
                name="split_ledger_node",
            ),
            node(
                load_base_tokenizer,
                [MODEL, "label_names", "params:data.max_length"],
                "tokenizer",
                name="load_tokenizer_node",
            ),
            node(
                tokenize_splits,
                ["ledger_splits", "label_names", "tokenizer", "params:data.max_length", "ledger"],
                "tokenized_datasets",
                name="tokenize_splits_node",
            ),
            node(
                fit_split_ngrams,
                ["ledger", "ledger_splits", "tokenized_datasets", "params:train.ngrams"],
                "ngrams",
                name="fit_ngrams_node",
            ),
            node(
                describe_dataset,
                ["ledger", "ledger_splits", "tokenized_datasets", "tokenizer", "ngrams", *KEPT],
                "dataset_metadata",
                name="describe_dataset_node",
            ),
        ]
    )
