"""The wiring of the register stage."""

from account_tax.pipelines.register.pipeline import create_pipeline


def test_the_pipeline_evaluates_before_it_registers():
    pipeline = create_pipeline()
    names = [node.name for node in pipeline.nodes]
    assert names == ["evaluate_test_split_node", "register_model_node"]
    assert pipeline.inputs() == {
        *("adapter", "tokenized_datasets", "ngrams", "dataset_metadata", "training_metrics"),
        *("params:train", "params:registry", "params:artifacts_root"),
    }
    assert pipeline.outputs() == {"registration"}
