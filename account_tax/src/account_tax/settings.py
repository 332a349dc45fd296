"""Kedro's settings: which hooks run in this process, and how parameters are read."""

import os

from omegaconf.resolvers import oc

from account_tax.hooks import RankHooks
from account_tax.parameters.kedro_loader import RecipeConfigLoader
from account_tax.processes.ranks import is_rank0

HOOKS = (RankHooks(),)

# kedro-mlflow opens the run of a `kedro run` by hand. A run that has an owner already (the
# launcher's, whose id stands in MLFLOW_RUN_ID) is neither opened nor ended here, and ranks other
# than 0 log nothing.
owned_or_silent = "MLFLOW_RUN_ID" in os.environ or not is_rank0()
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", *(["kedro_mlflow"] if owned_or_silent else []))

CONFIG_LOADER_CLASS = RecipeConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {"oc.env": oc.env},  # mlflow.yml reads the tracking URI from it
}
