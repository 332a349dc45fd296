"""Names by which the launcher, the ranks and registration find each other's files."""

ADAPTER_FOLDER = "adapter"  # below artifacts_root: the trained classifier
PARAMETERS_FILE = "parameters.yml"  # artifact of the MLflow run: the resolved parameters
MARKER_FILE = "train_complete.json"  # below artifacts_root: training's last word
INTERRUPTED_FILE = "interrupted.json"  # below artifacts_root: told to end, and saved at this step
FAULT_FILE = "fault.json"  # below artifacts_root: why training stopped itself
LAUNCHER_VARIABLE = "ACCOUNT_TAX_LAUNCHER"  # environment of stages: the process they belong to
PROGRESS_VARIABLE = "ACCOUNT_TAX_PROGRESS_FILE"  # rank 0's environment: where it tells its step
