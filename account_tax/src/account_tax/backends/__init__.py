"""MLflow project backends: places other than this machine where `mlflow run` can run a command."""
