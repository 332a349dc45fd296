"""The classifier and what is measured of it."""
