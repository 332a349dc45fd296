"""Names by which stages find each other's files, variables and tags."""

from __future__ import annotations

RECORD_FILE = "environment.json"  # artifact of each run


ADAPTER_FOLDER = "adapter"  # below artifacts_root: the trained classifier
BEST_FOLDER = "best"  # below artifacts_root: a copy of the best model
MODEL_METADATA_FILE = "model_metadata.json"  # beside it
DATASET_METADATA_FILE = "dataset_metadata.json"  # likewise
INTERRUPTED_FILE = "interrupted.json"  # below artifacts_root: saved at this step, when told to end
PARAMETERS_FILE = "parameters.yml"  # artifact of the MLflow run: the resolved parameters
METRICS_FOLDER = "metrics"  # below artifacts_root: RUN_ID.jsonl, the points, and RUN_ID.sent
PREPARED_FILE = "prepared.json"  # below artifacts_root: the versions of the data it is trained on
REGISTRATION_FILE = "registration.json"  # below artifacts_root: what was registered
MARKER_FILE = "train_complete.json"  # below artifacts_root: training's last word
PROGRESS_FILE = "progress.json"  # below artifacts_root: rank 0's step, for the launcher's line
METRICS_FILE = "training_metrics.json"  # below artifacts_root: as Kedro's catalog has it
FAULT_FILE = "fault.json"  # below artifacts_root: why training stopped itself
LAUNCHER_VARIABLE = "ACCOUNT_TAX_LAUNCHER"  # environment of stages: the process they belong to
REQUEUES_VARIABLE = "ACCOUNT_TAX_MAX_REQUEUES"  # how often a job may be queued again
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # rank 0's environment: where it tells its step
CONTENT_TAG, VERIFIED_TAG = "content_sha256", "verified"
# What the registry's column holds in every database MLflow supports; only SQLite takes more.
LONGEST_TAG = 5000


# What `prepare` saves in one session, and so under one version.
DATASETS = ("tokenized_datasets", "tokenizer", "dataset_metadata")
SPLITS = ("train", "validation", "test")


STATEMENT_FILE = "provenance.json"  # artifact of the training's run
PATCH_FILE = "code.patch"  # likewise, where the tree was dirty
TAG = "account_tax."  # before the names of the run's tags
STATEMENT_TAG = "provenance_sha256"  # of a version
