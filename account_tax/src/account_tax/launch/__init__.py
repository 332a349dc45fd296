"""The launcher: owns the MLflow run, starts and ends the stages, decides success."""
