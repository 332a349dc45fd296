"""The search for better values: `kedro tune`."""
