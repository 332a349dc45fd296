"""Names by which the launcher, the ranks and registration find each other's files."""

ADAPTER_FOLDER = "adapter"  # below artifacts_root: the trained classifier
PARAMETERS_FILE = "parameters.yml"  # artifact of the MLflow run: the resolved parameters
MARKER_FILE = "train_complete.json"  # below artifacts_root: training's last word
INTERRUPTED_FILE = "interrupted.json"  # below artifacts_root: told to end, all ranks have saved
REQUEUES_VARIABLE = "ACCOUNT_TAX_MAX_REQUEUES"  # how often a job may be queued again
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # rank 0's environment: where it tells its step
