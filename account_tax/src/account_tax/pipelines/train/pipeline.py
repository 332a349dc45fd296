"""The wiring of the training stage: one node, run by every rank."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline


def run_deepspeed_training(*inputs: Any) -> dict[str, Any]:
    """Run the training; imported late, so that listing the pipelines loads no torch."""
    from .training_core import run_training_pipeline

    return run_training_pipeline(*inputs)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline with the specification's node."""
    return pipeline(
        [
            node(
                run_deepspeed_training,
                inputs=["tokenized_datasets", "tokenizer", "params:train", "params:artifacts_root"],
                outputs="training_metrics",
                name="run_deepspeed_training",
            )
        ]
    )
