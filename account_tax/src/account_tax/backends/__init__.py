"""Where ranks run and where `mlflow run -b` sends a run: one room a backend."""
