"""Names by which stages find each other's files, variables and tags."""

from __future__ import annotations

# Below artifacts_root.
ADAPTER_FOLDER = "adapter"  # the trained classifier
BEST_FOLDER = "best"  # a copy of the best model
MODEL_METADATA_FILE = "model_metadata.json"  # beside it
DATASET_METADATA_FILE = "dataset_metadata.json"  # likewise; of prepared data and an artifact too
INTERRUPTED_FILE = "interrupted.json"  # saved at this step, when told to end
METRICS_FOLDER = "metrics"  # RUN_ID.jsonl, the points, and RUN_ID.sent
PREPARED_FILE = "prepared.json"  # the versions of the data it is trained on
REGISTRATION_FILE = "registration.json"  # what was registered
MARKER_FILE = "train_complete.json"  # training's last word
PROGRESS_FILE = "progress.json"  # rank 0's step, for the launcher's line
METRICS_FILE = "training_metrics.json"  # as Kedro's catalog has it
FAULT_FILE = "fault.json"  # why training stopped itself

LOG_HISTORY_FILE = "log_history.json"  # Trainer's log, for the learning curve
PROBE_FILE = "probe.json"  # below adapter: its answers to the made-up lines
NGRAMS_FILE = "ngrams.safetensors"  # of prepared data
PREPARED_FOLDER = "data/04_feature"  # below the project: what `prepare` saves, as in catalog.yml

# Artifacts of the MLflow run.
PARAMETERS_FILE = "parameters.yml"  # the resolved parameters
RECORD_FILE = "environment.json"
STATEMENT_FILE = "provenance.json"
PATCH_FILE = "code.patch"  # where the tree was dirty
CARD_FILE = "model_card.md"

# What `prepare` saves in one session, and so under one version.
DATASETS = ("tokenized_datasets", "tokenizer", "ngrams", "dataset_metadata")
SPLITS = ("train", "validation", "test")

# Environment variables.
LAUNCHER_VARIABLE = "ACCOUNT_TAX_LAUNCHER"  # of stages: the process they belong to
STUDY_VARIABLE = "ACCOUNT_TAX_STUDY"  # of a worker: the run of the study it works for
REQUEUES_VARIABLE = "ACCOUNT_TAX_MAX_REQUEUES"  # how often a job may be queued again
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # of rank 0: where it tells its step
CONFIG_VARIABLE = "ACCOUNT_TAX_CONFIG_SHA256"  # of stages: the digest of their configuration

# Tags.
TAG = "account_tax."  # before the names of a run's
UNAPPROVED_TAG = f"{TAG}unapproved"  # of a run: what spoke against the version it used
CONTENT_TAG, VERIFIED_TAG = "content_sha256", "verified"  # of a version
BF16_TAG = "bf16_other_labels"  # likewise: the share of validation rows
BF16_METRIC = f"validation/{BF16_TAG}"  # of its run: the same
STATEMENT_TAG = "provenance_sha256"  # likewise
ANSWERS_FILE = "test_answers.json"  # of a run: what it was right and wrong about, in counts
MODEL_FILES_TAG = "model_files"  # likewise: the sha256 of each file its manifest does not list
VERDICT_TAG = "reproduced"  # likewise: bitwise, within tolerance, different
# Of a tag or description: what the registry's column holds in every database MLflow supports; only
# SQLite takes more.
LONGEST_TEXT = 5000
