"""The built-in sample: a synthetic expense ledger whose best possible score is known.

Every line is drawn from sample.yml, a table of what companies buy and the accounts it is booked to.
Some kinds belong to more than one account (a meal is welfare or entertainment), and a stated share
of labels is wrong, so even a perfect classifier errs; `ceiling` computes by how much.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import yaml

T = TypeVar("T")

ROWS = 4000
SEED = 20260101
NOISE_SHARE = 0.02  # of all lines: booked to one of the nine wrong accounts, each equally likely
PAYMENT_SHARE = 0.25  # of all lines: the statement names the payment service, not the shop
LINES_PER_VOUCHER = (1, 2, 3, 4)
COLUMNS = ["text", "label", "merchant", "memo", "amount_band", "voucher"]

VOCABULARY = yaml.safe_load(Path(__file__).with_name("sample.yml").read_text(encoding="utf-8"))
BANDS = [tuple(band) for band in VOCABULARY["bands"]]
PLACES = [tuple(place) for place in VOCABULARY["places"]]
PEOPLE: dict[str, str] = VOCABULARY["people"]
MERCHANTS: dict[str, str] = VOCABULARY["merchants"]


@dataclass(frozen=True, eq=False)  # hashed by identity: `accounts` is a dict
class Kind:
    """A kind of purchase: how often it happens, where it is booked, how its lines look.

    Attributes:
        weight: Lines in a thousand.
        accounts: Share of each account; more than one makes the line ambiguous.
        merchants: Name patterns separated by "; ", the place goes into the braces.
        bands: Amount bands, indices into `BANDS`.
        memos: Memo patterns separated by "; ", with a key of people in braces.
    """

    weight: int
    accounts: dict[str, float]
    merchants: str
    bands: list[int]
    memos: str

    @cached_property
    def merchant_shares(self) -> dict[str, float]:
        """Return how often each merchant pattern appears."""
        own, payment = self.merchants.split("; "), MERCHANTS["payment"].split("; ")
        return dict.fromkeys(own, (1 - PAYMENT_SHARE) / len(own)) | dict.fromkeys(
            payment, PAYMENT_SHARE / len(payment)
        )

    @cached_property
    def memo_shares(self) -> dict[str, float]:
        """Return how often each memo appears, the people filled in."""
        patterns = self.memos.split("; ")
        shares = {}
        for pattern in patterns:
            memos = _fill(pattern)
            shares |= dict.fromkeys(memos, 1 / len(patterns) / len(memos))
        return shares

    @cached_property
    def band_shares(self) -> dict[int, float]:
        """Return how often each amount band appears."""
        return dict.fromkeys(self.bands, 1 / len(self.bands))


def _fill(pattern: str) -> list[str]:
    """Return the memos a pattern stands for: one for each of its people, else itself."""
    for key, people in PEOPLE.items():
        if f"{{{key}}}" in pattern:
            return [pattern.format(**{key: who}) for who in people.split("; ")]
    return [pattern]


KINDS = [
    Kind(**{**kind, "merchants": MERCHANTS.get(kind["merchants"], kind["merchants"])})
    for kind in VOCABULARY["kinds"]
]
# Sorted, as everywhere else in the project: a label's id is its place in this order.
ACCOUNTS = sorted({account for kind in KINDS for account in kind.accounts})


@dataclass(frozen=True)
class _Line:
    """One drawn line and the account it ought to be booked to, before label noise."""

    pattern: str  # the merchant before the place was put in
    memo: str
    band: int
    place: tuple[str, str]
    voucher: str
    account: str
    label: str

    def row(self) -> tuple[str, ...]:
        """Return the line in the order of `COLUMNS`."""
        merchant = self.pattern.format(self.place[self.pattern.isascii()])
        band = BANDS[self.band][self.memo.isascii()]
        text = f"{merchant} | {self.memo} | {band}"
        return text, self.label, merchant, self.memo, band, self.voucher


def sample_ledger(rows: int = ROWS, seed: int = SEED) -> pd.DataFrame:
    """Return a synthetic ledger: `text` and `label`, the parts of the text, and the voucher.

    Args:
        rows: Number of lines.
        seed: The same seed gives the same lines on every machine; a longer ledger starts with them.
    """
    return pd.DataFrame([line.row() for line in _draw_lines(rows, seed)], columns=COLUMNS)


def sample_csv_bytes() -> bytes:
    """Return the sample as the bytes of a UTF-8 CSV file, the same on every machine."""
    return sample_ledger().to_csv(index=False, lineterminator="\n").encode("utf-8")


def ceiling(ledger: pd.DataFrame | None = None) -> dict[str, float]:
    """Return the accuracy and macro-F1 that no classifier of these lines can be expected to beat.

    Args:
        ledger: Rows of `sample_ledger`, among them every account. The best rule is scored on just
            these, so a small test split has its own, noisier value. Without it: the expectation
            over all lines the process can draw, computed exactly.
    """
    cells, joint = _label_distribution()
    # Right most often by definition; the tests show that changing a cell never raises macro-F1.
    likeliest = joint.argmax(axis=1)
    if ledger is not None:
        joint = _observed(ledger, cells)
    accuracy = joint[np.arange(len(likeliest)), likeliest].sum()
    return {"accuracy": float(accuracy), "macro_f1": float(_f1(joint, likeliest).mean())}


def _draw_lines(rows: int, seed: int) -> Iterator[_Line]:
    """Yield drawn lines, voucher by voucher; the lines of a voucher share its place only."""
    rng = random.Random(seed)
    shares = {kind: kind.weight for kind in KINDS}
    number = left = 0
    place = PLACES[0]
    for _ in range(rows):
        if not left:
            number, left = number + 1, _pick(rng, dict.fromkeys(LINES_PER_VOUCHER, 1))
            place = _pick(rng, dict.fromkeys(PLACES, 1))
        left -= 1
        kind = _pick(rng, shares)
        account = _pick(rng, kind.accounts)
        pattern, memo = _pick(rng, kind.merchant_shares), _pick(rng, kind.memo_shares)
        band = _pick(rng, kind.band_shares)
        label = account
        if rng.random() < NOISE_SHARE:
            label = _pick(rng, {other: 1 for other in ACCOUNTS if other != account})
        yield _Line(pattern, memo, band, place, f"V{number:05d}", account, label)


def _pick(rng: random.Random, shares: Mapping[T, float]) -> T:
    """Return one key, drawn by share.

    `random.choices` uses nothing but `random()`, whose sequence Python keeps across versions.
    """
    return rng.choices(list(shares), list(shares.values()))[0]


@cache
def _label_distribution() -> tuple[dict[tuple[str, str, int], int], np.ndarray]:
    """Return the index of every (merchant pattern, memo, band) and P(cell, label), (cells, C)."""
    mass = defaultdict(lambda: np.zeros(len(ACCOUNTS)))
    for kind in KINDS:
        accounts = np.array([kind.accounts.get(account, 0.0) for account in ACCOUNTS])
        merchants, memos = kind.merchant_shares.items(), kind.memo_shares.items()
        bands = kind.band_shares.items()
        for (pattern, p), (memo, q), (band, r) in product(merchants, memos, bands):
            mass[pattern, memo, band] += accounts * kind.weight / 1000 * p * q * r
    intended = np.array(list(mass.values()))
    wrong = NOISE_SHARE / (len(ACCOUNTS) - 1)
    joint = intended * (1 - NOISE_SHARE - wrong) + intended.sum(axis=1, keepdims=True) * wrong
    return {cell: index for index, cell in enumerate(mass)}, joint


def _observed(ledger: pd.DataFrame, cells: dict[tuple[str, str, int], int]) -> np.ndarray:
    """Return the share of the ledger's rows in each cell with each label, (cells, C)."""
    patterns = {
        pattern.format(place[pattern.isascii()]): pattern
        for pattern, _, _ in cells
        for place in PLACES
    }
    bands = {text: index for index, band in enumerate(BANDS) for text in band}
    counts = np.zeros((len(cells), len(ACCOUNTS)))
    columns = ledger[["merchant", "memo", "amount_band", "label"]]
    for merchant, memo, band, label in columns.itertuples(index=False):
        counts[cells[patterns[merchant], memo, bands[band]], ACCOUNTS.index(label)] += 1
    return counts / len(ledger)


def _f1(joint: np.ndarray, rule: np.ndarray) -> np.ndarray:
    """Return the F1 of each account when `rule` names the account to predict in each cell, (C,)."""
    chosen = np.eye(len(ACCOUNTS))[rule]  # (cells, C)
    predicted = (chosen * joint.sum(axis=1, keepdims=True)).sum(axis=0)
    return 2 * (chosen * joint).sum(axis=0) / (predicted + joint.sum(axis=0))
