"""Wiring of the register pipeline."""

from kedro.pipeline import Pipeline, node

from .nodes import evaluate_model, register_model


def create_pipeline(**_: object) -> Pipeline:
    """Return the pipeline from a trained classifier to a registered version."""
    return Pipeline(
        [
            node(
                evaluate_model,
                inputs=[
                    "adapter",
                    "tokenized_datasets",
                    "ngrams",
                    "training_metrics",
                    "params:train",
                    "params:registry",
                    "params:artifacts_root",
                ],
                outputs="test_evaluation",
                name="evaluate_test_split_node",
            ),
            node(
                register_model,
                inputs=[
                    "test_evaluation",
                    "dataset_metadata",
                    "training_metrics",
                    "params:train",
                    "params:registry",
                    "params:artifacts_root",
                ],
                outputs="registration",
                name="register_model_node",
            ),
        ]
    )
