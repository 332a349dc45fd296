"""Two registered versions, met as a stranger would, and their answers to the same test rows.

N rows, C classes. Texts stay in here: what leaves is ids, counts, labels and scores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.confidential import public_source, without_quotes
from account_tax.errors import Refused
from account_tax.ledger.reading import DataError, read_columns, read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.texts import Tokenize, number
from account_tax.ledger.tokens import read_tokens, tokenize_splits
from account_tax.model.calibration import compute_cross_entropy, softmax
from account_tax.model.classifier import (
    LoadedClassifier,
    join_texts,
    load_classifier,
)
from account_tax.registry.download import download_version, refuse_broken
from account_tax.registry.record import Record, read_record
from account_tax.storage.prepared import split_digest

from .baselines import predict_baselines

MOST_VALUES = 30  # of a slice's column; with more they are likely to be texts


@dataclass(frozen=True)
class Contender:
    """A registered version, downloaded, its files and base checked, with its run's record."""

    version: ModelVersion
    classifier: LoadedClassifier
    record: Record
    weights_bytes: int

    @property
    def title(self) -> str:
        """Name and number, as people say it."""
        return f"{self.version.name} version {self.version.version}"


@dataclass(frozen=True)
class SplitRows:
    """The test split made again: rows and where they came from.

    Attributes:
        data: The parameters it was made with, its source the one that was read.
        labels: Label names of the ledger, sorted.
        test: Columns text, label and row_id.
        train: The same, for the baselines.
    """

    data: dict[str, Any]
    labels: list[str]
    test: pd.DataFrame
    train: pd.DataFrame

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of the ledger for the test rows, in their order."""
        table = read_columns(self.data, columns)
        file = "test" if "test" in table.index.levels[0] else ""  # type: ignore[attr-defined]
        return table.loc[file].loc[self.test["row_id"]].reset_index(drop=True)


@dataclass(frozen=True)
class Scored:
    """One version's answers.

    Attributes:
        predicted: Class ids, (N,).
        scores: Probability of the predicted label, (N,), at the version's own temperature.
        loss: Cross-entropy of its scores in nats; None where it does not know every label.
        rows_per_second: Of this machine, tokenizing included.
    """

    predicted: np.ndarray
    scores: np.ndarray
    loss: float | None
    rows_per_second: float


@dataclass(frozen=True)
class Evidence:
    """What the review is made from.

    Attributes:
        names: Class names, C: the challenger's, then those that only others know.
        truth: Class ids, (N,).
        row_ids: Of the ledger, (N,).
        challenger: The reviewed version.
        champion: The version in service; None with `champion_note`, which says why.
        answers: By role, challenger and, where there is one, champion.
        baselines: By name, class ids (N,).
        slices: By column, the rows' values (N,).
        unknown_rows: Rows whose label the champion does not know.
        leaked_rows: Test rows the champion was trained on; None where `leak_note` says why not.
        train_rows: Rows of the train split.
        data: The parameters the test split was made with.
        unseen: Whether train never saw the supplier, (N,); None where suppliers are not known.
        amounts: Of the rows, (N,), NaN where none can be read; None where they are not known.
    """

    names: list[str]
    truth: np.ndarray
    row_ids: np.ndarray
    challenger: Contender
    champion: Contender | None
    champion_note: str
    answers: dict[str, Scored]
    baselines: dict[str, np.ndarray]
    slices: dict[str, pd.Series]
    unknown_rows: int
    leaked_rows: int | None
    leak_note: str
    train_rows: int
    data: dict[str, Any]
    unseen: pd.Series | None = None
    amounts: pd.Series | None = None

    def contender(self, role: str) -> Contender:
        """Return the version of a role that has answers."""
        found = self.challenger if role == "challenger" else self.champion
        assert found is not None, "only those that there are have answers"
        return found


@without_quotes
def gather_evidence(
    challenger: Contender,
    champion: Contender | None,
    champion_note: str,
    *,
    source: str | None,
    slices: Sequence[str],
) -> Evidence:
    """Return both versions' and the baselines' answers to the challenger's test split.

    Args:
        challenger: The version to review.
        champion: The version in service, if there is another one.
        champion_note: Why there is no champion; else empty.
        source: Where the ledger is now; None where it was.
        slices: Columns of the ledger to tell rows apart by.

    Raises:
        Refused: If the test split can't be made again, or a slice's values can't be shown.
    """
    rows = remake_test_split(challenger, source)
    columns = read_slices(rows, slices, challenger.classifier.settings["text_columns"])
    texts, champion_texts = rows.test["text"].tolist(), None
    if champion:
        champion_texts, champion_note = _read_as(champion, rows)
    known = [challenger.classifier.labels]
    known += [champion.classifier.labels] if champion and champion_texts is not None else []
    names = list(dict.fromkeys(label for labels in known for label in labels))
    truth = _ids(rows.test["label"], names)
    answers = {"challenger": _score(challenger, texts, truth, names)}
    leaked, leak_note, unknown = None, "there is no champion", 0
    if champion and champion_texts is not None:
        answers["champion"] = _score(champion, champion_texts, truth, names)
        leaked, leak_note = count_leaked_rows(champion, champion_texts, rows, challenger)
        known_to_it = set(champion.classifier.labels)
        unknown = sum(label not in known_to_it for label in rows.test["label"])
    baselines = predict_baselines(rows.train["text"].tolist(), rows.train["label"].tolist(), texts)
    return Evidence(
        names, truth, rows.test["row_id"].to_numpy(), challenger, champion, champion_note, answers,
        {name: _ids(labels, names) for name, labels in baselines.items()},
        columns, unknown, leaked, leak_note, len(rows.train), rows.data,
        rows.test.get("unseen"), rows.test.get("amount"),
    )  # fmt: skip


# --- the versions ---------------------------------------------------------------------------------


def load_contender(client: MlflowClient, version: ModelVersion, scratch: Path) -> Contender:
    """Return a version from the registry; each file and the base are checked.

    Raises:
        Refused: If a file is not the one that was registered, or the base is not here or another.
    """
    folder = scratch / str(version.version)
    with refuse_broken(f"{version.name} version {version.version} can't be reviewed"):
        classifier_folder = download_version(version, folder)
        classifier = load_classifier(classifier_folder).merge()
    weights = sum(file.stat().st_size for file in classifier_folder.glob("*.safetensors"))
    return Contender(version, classifier, read_record(client, version), weights)


# --- the rows -------------------------------------------------------------------------------------


def remake_test_split(challenger: Contender, source: str | None) -> SplitRows:
    """Return the challenger's test split, proven to be the one it was registered with.

    Raises:
        Refused: If nothing says how it was made, the ledger can't be read, or a digest differs.
    """
    if changed := challenger.record.changed:
        lines = "".join(f"\n  {each.text}" for each in changed)
        raise Refused(f"{challenger.title}: its run does not keep what it recorded{lines}")
    recorded = challenger.record.data
    if recorded is None:
        raise Refused(
            f"{challenger.title}: its run {challenger.version.run_id} has no parameters.yml, "
            "so its test split can't be made again. Restore the run's artifacts, or train the "
            "version again."
        )
    data = recorded | ({"source": source} if source else {})
    try:
        ledger = read_ledger(data, _tokenize_as(challenger))
        splits, labels = split_ledger(ledger, data)
        texts = ledger.with_texts({name: splits[name] for name in ("test", "train")})
    except DataError as err:
        raise Refused(f"{err}\n  {_what_to_give(challenger)}") from err
    faults = _split_faults(challenger, ledger.source_sha256, texts["test"], labels)
    if faults:
        name = public_source(data["source"])
        lines = "".join(f"\n  {fault}" for fault in [*faults, _what_to_give(challenger)])
        raise Refused(f"{name} is not the ledger of {challenger.title}{lines}")
    return SplitRows(data, labels, texts["test"], texts["train"])


def _what_to_give(challenger: Contender) -> str:
    given = challenger.record.digest("data/source")
    return f"Give the ledger it was trained on (sha256 {given}) as -P data=PATH."


def _split_faults(
    challenger: Contender, source_sha256: str, test: pd.DataFrame, labels: list[str]
) -> list[str]:
    """Return how the rows made now differ from those that the version's provenance records."""
    classifier, record = challenger.classifier, challenger.record
    faults = []
    if unknown := sorted(set(test["label"]) - set(classifier.labels)):
        faults.append(f"the test split has labels that the version does not know: {unknown}.")
    if source_sha256 != (recorded := record.digest("data/source")):
        faults.append(f"the ledger's bytes have sha256 {source_sha256}, recorded is {recorded}.")
    tokenized = tokenize_splits(
        {"test": test}, labels, classifier.tokenizer, classifier.settings["max_length"]
    )
    found, recorded = split_digest(tokenized["test"].data), record.digest("data/test")
    if found != recorded:
        faults.append(f"its test split has sha256 {found}, recorded is {recorded}.")
    return faults


def _read_as(champion: Contender, rows: SplitRows) -> tuple[list[str] | None, str]:
    """Return the test rows' texts as the champion reads them, or None and why not."""
    settings = champion.classifier.settings
    try:
        table = rows.read(settings["text_columns"])
    except DataError as err:
        reason = f"{champion.title} reads columns that this ledger does not have: {err.faults[0]}"
        return None, reason
    return join_texts(table, settings["text_columns"], settings["separator"]).tolist(), ""


def read_slices(
    rows: SplitRows, columns: Sequence[str], text_columns: Sequence[str]
) -> dict[str, pd.Series]:
    """Return the test rows' values of the columns that the user named.

    Raises:
        Refused: If a column is missing, is one of the model's text columns, or has too many values.
    """
    if not columns:
        return {}
    why = {rows.data.get("supplier_column"): "it holds suppliers, whom no report names"}
    reads = "the model reads it, so its values are ledger text, which no report shows"
    why |= dict.fromkeys(text_columns, reads)
    faults = [f"{column}: {why[column]}" for column in columns if column in why]
    try:
        table = rows.read([column for column in columns if column not in why])
    except DataError as err:
        faults += err.faults
        table = pd.DataFrame()
    parts = {str(name): values for name, values in table.items()}
    for column, part in parts.items():
        if (values := len(set(part))) > MOST_VALUES:
            faults.append(
                f"{column}: {values} different values in the test split, at most {MOST_VALUES} are "
                "shown: more are likely to be text or numbers of single lines"
            )
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise Refused(f"-P slices={','.join(columns)}: name other columns, or leave it out{lines}")
    return {column: part.replace("", "(empty)") for column, part in parts.items()}


def count_leaked_rows(
    champion: Contender, texts: Sequence[str], rows: SplitRows, challenger: Contender
) -> tuple[int | None, str]:
    """Return how many of the test rows' texts the champion was trained on, or None and why.

    Args:
        champion: The version in service.
        texts: The test rows as it reads them.
        rows: The test split, for its source.
        challenger: For the digest of that source.
    """
    data = champion.record.data
    if data is None:
        return None, "the champion's run does not record its data"
    digest = champion.record.digest("data/source")
    if digest == challenger.record.digest("data/source"):
        data = data | {"source": rows.data["source"]}
    tokenize = _tokenize_as(champion)
    try:
        ledger = read_ledger(data, tokenize)
        if ledger.source_sha256 != digest:
            return None, "the ledger the champion was trained on has changed since"
        splits, _ = split_ledger(ledger, data)
    except DataError:
        return None, "the ledger the champion was trained on can't be read"
    seen = number(tokenize(pa.array(texts, pa.string())))
    return int(np.isin(seen, splits["train"]["seen"]).sum()), ""


def _tokenize_as(contender: Contender) -> Tokenize:
    """Return what gives the token ids that a version reads of texts."""
    classifier = contender.classifier
    length = classifier.settings["max_length"]
    return lambda texts: read_tokens(texts, classifier.tokenizer, length)


# --- the answers ----------------------------------------------------------------------------------


def _ids(labels: Any, names: Sequence[str]) -> np.ndarray:
    position = {name: index for index, name in enumerate(names)}
    return np.array([position[str(label)] for label in labels], dtype=np.int64)


def _score(
    contender: Contender, texts: Sequence[str], truth: np.ndarray, names: Sequence[str]
) -> Scored:
    """Return a version's answers, its class ids turned to positions in `names`."""
    classifier = contender.classifier
    start = time.perf_counter()
    logits = classifier.logits(texts)
    seconds = time.perf_counter() - start
    calibration: Mapping[str, Any] = classifier.settings.get("calibration") or {}
    temperature = calibration.get("temperature", 1.0)
    scores = softmax(logits, temperature)
    own = _ids(classifier.labels, names)  # class id -> position in names
    back = np.full(len(names), -1)
    back[own] = np.arange(len(own))
    known = back[truth]
    loss = compute_cross_entropy(logits / temperature, known) if (known >= 0).all() else None
    return Scored(own[logits.argmax(-1)], scores.max(-1), loss, len(texts) / max(seconds, 1e-9))
