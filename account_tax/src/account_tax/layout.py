"""Names by which the launcher, the ranks and registration find each other's files."""

ADAPTER_FOLDER = "adapter"  # below artifacts_root: the trained classifier
PARAMETERS_FILE = "parameters.yml"  # artifact of the MLflow run: the resolved parameters
METRICS_FOLDER = "metrics"  # below artifacts_root: RUN_ID.jsonl, the points, and RUN_ID.sent
PREPARED_FILE = "prepared.json"  # below artifacts_root: the versions of the data it is trained on
REGISTRATION_FILE = "registration.json"  # below artifacts_root: what was registered
MARKER_FILE = "train_complete.json"  # below artifacts_root: training's last word
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # rank 0's environment: where it tells its step
