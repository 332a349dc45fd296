"""`kedro export`."""
