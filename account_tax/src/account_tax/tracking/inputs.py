"""What a run reads and the machine it runs on, as MLflow shows them; no text."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

DIGEST_LENGTH = 32  # MLflow takes 36 characters
FINISH_SECONDS = 3.0  # that the end of a run waits for the last sample


def split_inputs(metadata: Mapping[str, Any], *splits: str) -> list[DatasetInput]:
    """Return splits as datasets of MLflow.

    Args:
        metadata: dataset_metadata.json; digests are the first `DIGEST_LENGTH` digits of its own.
        splits: Those that are read.
    """
    source = {"uri": metadata["source"], "sha256": metadata["source_sha256"]}
    columns = [*metadata["text_columns"], metadata["label_column"]]
    schema = {"mlflow_colspec": [{"type": "string", "name": name} for name in columns]}
    name = PurePosixPath(metadata["source"]).name
    return [
        DatasetInput(
            Dataset(
                f"{name} ({split})",
                facts["sha256"][:DIGEST_LENGTH],
                "ledger",
                json.dumps(source, ensure_ascii=False),
                json.dumps(schema, ensure_ascii=False),
                json.dumps({"num_rows": facts["rows"], "num_accounts": len(facts["classes"])}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, split)],
        )
        for split, facts in ((split, metadata["splits"][split]) for split in splits)
    ]


@contextmanager
def machine_watched(run_id: str, uri: str, seconds: int | None) -> Iterator[None]:
    """Log what this machine's processors, memory, disk and GPUs do meanwhile.

    Args:
        run_id: That it is logged to, as `system/...`.
        uri: Of the tracking server; one that is away costs the samples and no waiting.
        seconds: Between two samples; None: nothing is logged.
    """
    if seconds is None:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, seconds, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        ending = threading.Thread(target=monitor.finish, daemon=True)
        ending.start()
        ending.join(FINISH_SECONDS)
