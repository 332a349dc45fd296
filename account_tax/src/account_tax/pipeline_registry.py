"""The stages of a run, as Kedro knows them."""

from kedro.pipeline import Pipeline

from account_tax.pipelines import prepare, register, train


def register_pipelines() -> dict[str, Pipeline]:
    """Return each stage by name; without a name `kedro run` runs all of them."""
    stages = {
        "prepare": prepare.create_pipeline(),
        "train": train.create_pipeline(),
        "register": register.create_pipeline(),
    }
    return stages | {"__default__": stages["prepare"] + stages["train"] + stages["register"]}
