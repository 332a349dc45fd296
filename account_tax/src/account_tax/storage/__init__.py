"""What lies on disk: names, whole writes, checkpoints, prepared data."""
