"""The project's commands: parse, call, print, exit status."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from account_tax.ranks import end_rank


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


@cli.command(name="run", params=kedro_run.params, help=kedro_run.help)
@click.pass_context
def run(context: click.Context, **options: Any) -> None:
    """Run pipelines as Kedro does, but skip a `prepare` whose result is there already."""
    alone = [options.get("pipeline"), *(options.get("pipelines") or [])]
    if "prepare" in alone and (version := _prepared_version(options)):
        click.echo(f"prepare: skipped, same source bytes and parameters as version {version}")
        return
    context.invoke(kedro_run, **options)
    end_rank()


def _prepared_version(options: dict[str, Any]) -> str | None:
    """Return the version of data prepared from what this run would read, if there is one."""
    from kedro.framework.session import KedroSession

    from account_tax.pipelines.prepare.ledger import DataError, source_digest
    from account_tax.pipelines.prepare.nodes import inputs_sha256
    from account_tax.prepared import find_prepared

    created = {"env": options["env"], "conf_source": options["conf_source"]}
    with KedroSession.create(**created, runtime_params=options["params"]) as session:
        parameters = session.load_context().params  # type: ignore[attr-defined]
    data, model = parameters["data"], parameters["train"]["model"]
    try:
        key = inputs_sha256(data, model, source_digest(data))
    except DataError:
        return None  # the pipeline says what is wrong with it
    return find_prepared(Path("data/04_feature"), key)
