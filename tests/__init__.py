"""The tests. This file is imported before any other, so before torch and MLflow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks on two cores
os.environ["HF_HUB_OFFLINE"] = "1"
# The tests may themselves run inside an MLflow run (`mlflow run . -e test`), which is not theirs.
for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[name]
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
