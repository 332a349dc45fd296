"""One folder a pipeline: pipeline.py holds the wiring, nodes the functions."""
