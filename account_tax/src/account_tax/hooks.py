"""What a Kedro session does around its nodes, in each rank."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from account_tax.processes.identity import identify
from account_tax.processes.ranks import is_rank0
from account_tax.provenance.environment import describe_environment, environment_tags
from account_tax.registry.cold import forget_cold, start_cold
from account_tax.storage.files import write_whole
from account_tax.storage.names import PROGRESS_VARIABLE, RECORD_FILE, TAG
from account_tax.tracking.ownership import OWNER_TAG


class RankHooks:
    """Ranks other than 0 write nothing; nodes find the MLflow run in their environment."""

    def __init__(self) -> None:
        self._nodes, self._begun = 0, 0

    @hook_impl
    def after_catalog_created(self, catalog: Any) -> None:
        """Keep the metrics of ranks other than 0 in memory: rank 0 writes them for all."""
        if not is_rank0():
            catalog["training_metrics"] = MemoryDataset()

    @hook_impl(trylast=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Tell the nodes the run that kedro-mlflow opened, and the run its environment."""
        self._nodes, self._begun = len(pipeline.nodes), 0
        if any(node.name == "register_model_node" for node in pipeline.nodes):
            start_cold()  # it imports while the test split is evaluated
        if run := mlflow.active_run():
            os.environ["MLFLOW_RUN_ID"] = run.info.run_id
            os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
            record = describe_environment(Path.cwd())
            tags = environment_tags(record)
            mlflow.set_tags({f"{TAG}{name}": text for name, text in tags.items()})
            mlflow.set_tag(OWNER_TAG, identify())
            mlflow.log_dict(record, RECORD_FILE)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Tell the launcher how far a stage is; of training, rank 0 tells it."""
        if self._nodes > 1 and (file := os.environ.get(PROGRESS_VARIABLE)):
            doing = node.name.removesuffix("_node").replace("_", " ")
            progress = {"step": self._begun, "max_steps": self._nodes, "doing": doing}
            write_whole(Path(file), json.dumps(progress), synced=False)
        self._begun += 1

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End what was started early and not needed."""
        forget_cold()

    on_pipeline_error = after_pipeline_run
