"""`kedro look`: what a ledger holds as training would read it; nothing is trained or kept."""

from __future__ import annotations

from typing import Any

import click

from account_tax.ledger.reading import DataError
from account_tax.ledger.splitting import split_ledger, splits_in_words
from account_tax.ledger.tokens import load_base_tokenizer, read_seen_ledger, tokenize_splits
from account_tax.parameters.config import ConfigError
from account_tax.terminal import fact_line

from .nodes import describe_dataset

SHOWN_ACCOUNTS = 100


def look(data: dict[str, Any], train: dict[str, Any]) -> None:
    """Print counts, lengths, doubtful and rare accounts of a ledger: `prepare`, but for saving.

    Raises:
        ConfigError: With every fault of the ledger.
    """
    model = train["model"]
    try:
        ledger = read_seen_ledger(data, model)
        splits, labels = split_ledger(ledger, data)
        tokenizer = load_base_tokenizer(model, labels, data["max_length"])
    except DataError as err:
        raise ConfigError(err.faults) from None
    tokenized = tokenize_splits(splits, labels, tokenizer, data["max_length"], ledger)
    found = describe_dataset(ledger, splits, tokenized, tokenizer, {}, data, train)
    length = found["token_length"]
    facts = ledger.facts() | {
        "rows": splits_in_words(splits),
        "tokens a row": f"half have at most {length['p50']}, 95% {length['p95']}, all "
        f"{length['max']}; {length['truncated_share']:.1%} are cut at {data['max_length']}",
        "accounts": f"{len(labels)}; rows in {', '.join(found['splits'])}:",
    }
    for name, fact in facts.items():
        click.echo(fact_line(name, fact))
    counts = [split["classes"] for split in found["splits"].values()]
    rows = {label: [count[label] for count in counts] for label in labels}
    for label in sorted(labels, key=lambda label: -sum(rows[label]))[:SHOWN_ACCOUNTS]:
        click.echo(f"{' '.join(f'{number:>9,}' for number in rows[label])}  {label}")
    if (more := len(labels) - SHOWN_ACCOUNTS) > 0:
        click.echo(f"  and {more:,} more")
