"""What the run that trained a version left behind; None where it was not recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.ledger.reading import READ_SETTINGS
from account_tax.registry.download import download_run_artifact
from account_tax.storage.names import PARAMETERS_FILE, RECORD_FILE

DATASET_FILE = "dataset_metadata.json"
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # deleted for good, or never one
# What dataset_metadata.json repeats of data.yml, for runs without parameters.yml.
DATA_KEYS = ("source", "text_columns", "label_column", "group_column", "separator", "max_length",
             "duplicates", "split", *READ_SETTINGS)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A training run as far as it is recorded.

    Attributes:
        parameters: parameters.yml: data, train, registry.
        dataset: dataset_metadata.json.
        environment: environment.json.
        tags: Of the run.
        metrics: Of the run, each one's last value.
        seconds: From the run's start to its end.
    """

    parameters: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def data(self) -> dict[str, Any] | None:
        """The parameters of data.yml."""
        if self.parameters is not None:
            return self.parameters["data"]
        if self.dataset is not None:
            # A version may be older than the keys of READ_SETTINGS.
            return {key: self.dataset[key] for key in DATA_KEYS if key in self.dataset}
        return None


def read_record(client: MlflowClient, version: ModelVersion, scratch: Path) -> Record:
    """Return what the version's run left; an empty record where the run is gone."""
    try:
        run = client.get_run(str(version.run_id))
    except MlflowException as err:
        if err.error_code not in GONE:
            raise
        return Record()

    def read(name: str, parse: Callable[[str], Any]) -> Any:
        file = download_run_artifact(client, run.info.run_id, name, scratch)
        return parse(file.read_text(encoding="utf-8")) if file else None

    ended = run.info.end_time
    return Record(
        read(PARAMETERS_FILE, yaml.safe_load),
        read(DATASET_FILE, json.loads),
        read(RECORD_FILE, json.loads),
        run.data.tags,
        run.data.metrics,
        (ended - run.info.start_time) / 1000 if ended else None,
    )
