"""The MLflow run: its store, its owner, its metrics."""
