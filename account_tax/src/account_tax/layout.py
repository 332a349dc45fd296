"""Names by which the launcher, the ranks and registration find each other's files."""

ADAPTER_FOLDER = "adapter"  # below artifacts_root: the trained classifier
BEST_FOLDER = "best"  # below artifacts_root: a copy of the best model
MODEL_METADATA_FILE = "model_metadata.json"  # beside it
DATASET_METADATA_FILE = "dataset_metadata.json"  # likewise
INTERRUPTED_FILE = "interrupted.json"  # below artifacts_root: saved at this step, when told to end
PARAMETERS_FILE = "parameters.yml"  # artifact of the MLflow run: the resolved parameters
MARKER_FILE = "train_complete.json"  # below artifacts_root: training's last word
PROGRESS_FILE = "progress.json"  # below artifacts_root: rank 0's step, for the launcher's line
METRICS_FILE = "training_metrics.json"  # below artifacts_root: as Kedro's catalog has it
REGISTRATION_FILE = "registration.json"  # likewise
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # rank 0's environment: where it tells its step
