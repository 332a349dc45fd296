"""Slurm: `mlflow run -b slurm`, and ranks inside its jobs."""
