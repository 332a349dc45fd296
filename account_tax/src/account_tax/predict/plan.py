"""What a prediction will read, load and write, found good before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.confidential import without_quotes
from account_tax.errors import Refused
from account_tax.faults import tell
from account_tax.ledger.joined import JoinedFiles
from account_tax.ledger.windows import Wanted, repeated
from account_tax.model.classifier import (
    MANIFEST_FILE,
    SETTINGS_FILE,
    has_bf16,
    resolve_pin,
)
from account_tax.registry.download import download_version, refuse_broken
from account_tax.registry.find import find_version, parse_model_uri
from account_tax.registry.registry_state import check_standing
from account_tax.storage.files import output_faults
from account_tax.storage.names import BF16_TAG

from .options import Options
from .sinks import ENDINGS
from .streams import STREAM

MOST_OTHER_LABELS = 0.001  # of the version's validation rows: more, and bf16 is not worth it


@dataclass(frozen=True)
class Model:
    """A version that was downloaded and checked: its files, settings and digest."""

    version: ModelVersion
    folder: Path
    settings: dict[str, Any]
    content_sha256: str
    unapproved: str = ""  # what the review history has against it, and was to be overlooked

    @property
    def title(self) -> str:
        """The version in a person's words."""
        return f"{self.version.name} version {self.version.version}"

    @property
    def thresholds(self) -> dict[str, Any]:
        """The scores below which a person has to look, as registration fitted them."""
        fitted = self.settings.get("calibration") or {}
        return {"threshold": None} | {
            key: fitted[key] for key in ("threshold", "account_thresholds") if key in fitted
        }


@dataclass(frozen=True)
class Plan:
    """A prediction that can begin."""

    options: Options
    model: Model
    source: JoinedFiles
    input_sha256: str

    @property
    def thresholds(self) -> dict[str, Any]:
        """The scores below which a person has to look, see `needs_review`."""
        given = self.options.threshold
        return self.model.thresholds if given is None else {"threshold": given}

    @property
    def threshold_in_words(self) -> str:
        """The score below which a person has to look; of the rest, where accounts have theirs."""
        score, own = self.thresholds["threshold"], self.thresholds.get("account_thresholds")
        words = "none" if score is None else f"{score:g}"
        return f"{words}, {len(own)} accounts their own" if own else words

    def precision(self, device: str) -> tuple[str, str]:
        """Return fp32 or bf16, and why."""
        share = self.model.version.tags.get(BF16_TAG)
        if self.options.precision == "fp32":
            return "fp32", "as asked"
        if not has_bf16(device):
            return "fp32", "bf16 is no faster on this hardware"
        if share is None:
            return "fp32", "it was not compared with bf16 when it was registered"
        try:
            other = float(share)
        except ValueError:  # whoever may write to the registry can set a tag
            return "fp32", f"its tag {BF16_TAG} is no number"
        said = f"{other:.2%} of its validation rows get another label in bf16"
        return ("bf16" if other <= MOST_OTHER_LABELS else "fp32"), said

    def key(self, device: str) -> dict[str, Any]:
        """Return what the output depends on: parts made under another key are never used."""
        options = self.options
        return {
            "input": self.input_sha256,
            "model": self.model.content_sha256,
            "options": [options.top_k, self.thresholds, options.batch_rows],
            "read": [options.encoding, options.header_row, options.sheet, options.amount_column],
            "formats": [options.input.suffix.lower(), options.output.suffix.lower()],
            "device": [device, self.precision(device)[0]],
        }


@without_quotes
def make_plan(client: MlflowClient, options: Options, scratch: Path) -> Plan:
    """Return the prediction that is asked for.

    Args:
        client: Of the store with the registry.
        options: What is asked.
        scratch: Takes the version's files.

    Raises:
        Refused: With every fault of files and model together.
    """
    faults: list[str] = []
    model = source = None
    try:
        model = fetch_model(client, options.model, scratch, options.allow_unapproved)
    except Refused as err:
        faults.append(str(err))
    columns = model.settings["text_columns"] if model else []
    try:
        source = open_input(options, columns, scratch)
    except Refused as err:
        faults.append(f"input = {options.input} (-P input): {err}")
    faults += check_output(options, source.paths if source else [])
    if model and source:
        faults += check_columns(model, source, options)
    if faults or model is None or source is None:
        raise Refused(tell(faults, "with the prediction; nothing was written"))
    return Plan(options, model, source, source.digest())


def added_columns(top_k: int) -> list[str]:
    """Return the names of the columns that are written beside the input's own."""
    more = [f"{name}_{place}" for place in range(2, top_k + 1) for name in ("label", "score")]
    return ["label", "score", *more, "needs_review"]


# --- the model ------------------------------------------------------------------------------------


def fetch_model(
    client: MlflowClient, uri: str, scratch: Path, allow_unapproved: bool = False
) -> Model:
    """Return the version of a models:/ URI, downloaded, each file and the base checked.

    Raises:
        Refused: If there is none, the review history speaks against it, a file is not the
            registered one, or the base is not here.
    """
    name, reference = parse_model_uri(uri)
    version = find_version(client, name, reference)
    title = f"model = {uri} (-P model): {version.name} version {version.version}"
    unapproved = check_standing(client, version, reference, allow_unapproved)
    with refuse_broken(title):
        folder = download_version(version, scratch)
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        if (folder / "adapter_config.json").exists():
            resolve_pin(settings["base"])
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return Model(version, folder, settings, manifest["content_sha256"], unapproved)


# --- the files ------------------------------------------------------------------------------------


def open_input(options: Options, text_columns: Sequence[str], scratch: Path) -> JoinedFiles:
    """Return the ledger to file, opened as training opens it.

    Args:
        options: What is asked.
        text_columns: Those the model reads.
        scratch: Takes what a packed file holds.

    Raises:
        Refused: If it is missing or unreadable; the message follows its name.
    """
    path = options.input
    how = {"encoding": options.encoding, "header_row": options.header_row, "sheet": options.sheet}
    try:
        columns = dict.fromkeys(text_columns, "")
        if amount := options.amount_column:
            columns.setdefault(amount, "-P amount_column")
        wanted = Wanted(columns, **how)
        source = JoinedFiles(str(path), wanted, scratch, alike=True)
        source.refuse_faults()
    except OSError as err:
        raise Refused(f"can't be read ({err.strerror}).") from err
    except Refused as err:  # the reader knows training's parameters
        raise Refused(re.sub(r"\bdata\.(encoding|header_row|sheet)\b", r"-P \1", str(err))) from err
    return source


def check_output(options: Options, read: Sequence[Path]) -> list[str]:
    """Return what keeps the output, or the list of what can't be filed, from being made.

    Args:
        options: What is asked.
        read: The files of the input.
    """
    output, rejects = options.output, options.rejects
    faults = _file_faults(output, options, read)
    if output.suffix.lower() not in ENDINGS:
        faults.append(f"expected a file name that ends in {_endings()}.")
    more = [fault for fault in _file_faults(rejects, options, read) if fault not in faults]
    if rejects == STREAM:
        more = ["expected the name of a file."]
    elif rejects.resolve() == output.resolve():
        more = ["it is the output. Name another file."]
    return [f"output = {output} (-P output): {fault}" for fault in faults] + [
        f"errors = {rejects} (-P errors): {fault}" for fault in more
    ]


def _file_faults(path: Path, options: Options, read: Sequence[Path]) -> list[str]:
    """Return what keeps a file from being made, or the input from being lost by it."""
    faults, asked = list[str](), options.input.expanduser()
    folders = {each.resolve().parent for each in read}
    if path.exists() and any(path.samefile(each) for each in read):
        faults.append("it is the input, or a part of it. Name another file.")
    elif path.is_dir():
        faults.append("it is a folder. Name a file.")
    elif path.exists() and not path.is_file():
        faults.append("it is a device or a pipe. Name a file.")
    elif asked.is_dir() and path.resolve().parent in {*folders, asked.resolve()}:
        faults.append("it lies in the folder that is read. Name a file elsewhere.")
    elif not asked.exists() and path.resolve().parent in folders and fnmatch(path.name, asked.name):
        faults.append("it would be a part of the input. Name another file.")
    there = [] if faults or options.overwrite else [path]
    return faults + output_faults(path.parent, there, "Give -P overwrite=true to replace it.")


def check_columns(model: Model, source: JoinedFiles, options: Options) -> list[str]:
    """Return why the model's answers can't stand beside the ledger's own columns."""
    faults, top_k = list[str](), options.top_k
    if clash := [name for name in added_columns(top_k) if name in source.columns]:
        faults.append(f"it has the columns {clash}, which are added here. Rename its own.")
    to_csv = options.output.suffix.lower() == ".csv"  # there they are only copied
    if not to_csv and (twice := repeated(source.columns)):
        faults.append(f"the columns {twice} stand there more than once. Rename one.")
    faults = [f"input = {options.input} (-P input): {fault}" for fault in faults]
    if top_k > (known := len(model.settings["labels"])):
        faults.append(f"top_k = {top_k} (-P top_k): {model.title} knows {known} labels.")
    return faults


def _endings() -> str:
    *most, last = ENDINGS
    return f"{', '.join(most)} or {last}"
