"""The project's commands: parse, call, print, exit status."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from account_tax.processes.guard import Stopped, guard_stage
from account_tax.processes.ranks import end_rank


@click.group(name="account-tax")
def cli() -> None:
    """Commands of account-tax."""


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("parameters", nargs=-1, type=click.UNPROCESSED)
def train(parameters: tuple[str, ...]) -> None:
    r"""Train and register, as `mlflow run . -e train` does.

    \b
    --recipe NAME         a file of recipes/; starter where none is given
    --lora_r 16           any -P name of MLproject
    --train.lora.r 16     any key of conf/base/parameters/ by its dotted name
    --dry-run             check everything, show every value and where it came from, start nothing
    """
    from account_tax.launch.launcher import train as launch

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    sys.exit(launch(Path.cwd(), parameters))


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--version", default="challenger", help="A number or an alias.")
@click.option("--registered_model_name", default="from_recipe")
@click.option("--decision", default="none", help="approve, reject, retire or rollback.")
@click.option("--reviewer", default="none", help="Who decides.")
@click.option("--reason", default="none", help="Why.")
@click.option("--waive", default="none", help="Gates that need not be passed: gate1,gate2.")
@click.option("--expires", default="none", help="Until when an approval holds: 2027-06-30.")
@click.option("--slices", default="none", help="Columns of the ledger: region,merchant_type.")
@click.option("--data", default="none", help="Where the ledger is now.")
@click.option("--history", is_flag=False, flag_value="true", default="false")
@click.option(
    "--verify_history", "--verify-history", is_flag=False, flag_value="true", default="false"
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def review(more: tuple[str, ...], **options: str) -> None:
    """Review a registered version, decide on it, or show the decisions so far.

    Gates are set by their dotted name: --registry.gates.min_f1 0.9
    """
    _quieten_libraries()
    from account_tax.review.command import review as run_review

    sys.exit(run_review(Path.cwd(), options, more))


@cli.command()
@click.option("--version", default="challenger", help="A number or an alias.")
@click.option("--registered_model_name", default="from_recipe")
@click.option("--rungs", default="R0,R1,R2,R3", help="R0 bytes, R1 logits, R2 metrics, R3 training")
@click.option("--seeds", default="3", help="Trainings with other seeds, where weights differ.")
@click.option("--data", default="none", help="Where the ledger is now.")
@click.option("--verify_key", default="none", help="PEM file of the key that has to have signed.")
def reproduce(**options: str) -> None:
    """Check a registered version rung by rung, from its bytes to training it again."""
    _quieten_libraries()
    from account_tax.reproduce.command import reproduce as climb

    sys.exit(climb(Path.cwd(), options))


@cli.command()
@click.option("--version", default="challenger", help="A number or an alias.")
@click.option("--registered_model_name", default="from_recipe")
@click.option("--output", required=True, help="The folder to make; it must not exist.")
@click.option("--verify_key", default="none", help="PEM file of the key that has to have signed.")
def export(**options: str) -> None:
    """Write a registered version as an ordinary Hugging Face folder, merged into its base."""
    _quieten_libraries()
    from account_tax.export.command import export as write

    sys.exit(write(Path.cwd(), options))


@cli.command()
@click.option("--model", default="none", help="models:/NAME/VERSION or models:/NAME@ALIAS")
@click.option("--input", default="none", help="The ledger: .csv, .parquet or .jsonl")
@click.option("--output", default="none", help="The file to write, of any of these endings.")
@click.option("--top_k", default="1", help="Labels a row, likeliest first.")
@click.option("--threshold", default="none", help="Score below which a person looks: 0.9")
@click.option("--on_error", default="fail", help="fail or skip: whether a bad row is a failure.")
@click.option("--batch_rows", default="none", help="Rows held in memory and stored at once.")
@click.option("--overwrite", default="false", help="true replaces an output that is there.")
def predict(**options: str) -> None:
    """File a ledger with a registered version, as `mlflow run . -e predict` does."""
    from account_tax.predict.command import predict as file_rows

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    sys.exit(file_rows(Path.cwd(), options))


@cli.command()
@click.option("--run", required=True, help="The id of an MLflow run that has trained.")
def register(**options: str) -> None:
    """Register what a run has trained, where that was not done, and end the run."""
    from account_tax.launch.register import register as go_on

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    sys.exit(go_on(Path.cwd(), options))


@cli.command()
def runs() -> None:
    """Show the newest runs and what became of them; settle those whose Slurm job has ended."""
    from account_tax.backends.runs import show_runs

    sys.exit(show_runs(Path.cwd()))


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--backend", default="local", help="local, slurm, kubernetes or databricks.")
@click.option("--backend-config", help="The file that `mlflow run --backend-config` is given.")
@click.argument("parameters", nargs=-1, type=click.UNPROCESSED)
def preflight(backend: str, backend_config: str | None, parameters: tuple[str, ...]) -> None:
    """Check all that can be known before a run is submitted; submit nothing.

    Parameters are given as to `kedro train`. The exit status is 0, or 2 with every fault.
    """
    from account_tax.launch.preflight import BACKENDS
    from account_tax.launch.preflight import preflight as check

    if backend not in BACKENDS:
        raise click.BadParameter(f"{backend}: there are {', '.join(BACKENDS)}.")
    _quieten_libraries()
    sys.exit(check(Path.cwd(), backend, backend_config, parameters))


@cli.command(name="run", params=kedro_run.params, help=kedro_run.help)
@click.pass_context
def run(context: click.Context, **options: Any) -> None:
    """Run pipelines as Kedro does, but skip a `prepare` whose result is there already."""
    alone = [options.get("pipeline"), *(options.get("pipelines") or [])]
    if "prepare" in alone and (version := _prepared_version(options)):
        click.echo(f"prepare: skipped, same source bytes and parameters as version {version}")
        return
    guard_stage()
    try:
        context.invoke(kedro_run, **options)
    except Stopped as err:
        click.echo(err)
    end_rank()


def _quieten_libraries() -> None:
    """Keep bars, hints to developers and logs off the terminal, where a person reads the result."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.simplefilter("ignore")
    for name in ("mlflow", "account_tax"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _prepared_version(options: dict[str, Any]) -> str | None:
    """Return the version of data prepared from what this run would read, if there is one."""
    from kedro.framework.session import KedroSession

    from account_tax.ledger.reading import DataError, source_digest
    from account_tax.pipelines.prepare.nodes import inputs_sha256
    from account_tax.storage.prepared import find_prepared

    created = {"env": options["env"], "conf_source": options["conf_source"]}
    with KedroSession.create(**created, runtime_params=options["params"]) as session:
        parameters = session.load_context().params  # type: ignore[attr-defined]
    data, model = parameters["data"], parameters["train"]["model"]
    try:
        key = inputs_sha256(data, model, source_digest(data))
    except DataError:
        return None  # the pipeline says what is wrong with it
    return find_prepared(Path("data/04_feature"), key)
