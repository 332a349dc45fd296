"""The project's commands: parse, call, print, exit status."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from kedro.framework.cli.cli import KedroCLI
from kedro.framework.cli.project import run as kedro_run

from account_tax.terminal import is_verbose, settle_libraries  # isort: skip  (before what warns)
from account_tax.backends import runs as backend_runs
from account_tax.commands import run_in_mlflow
from account_tax.confidential import hidden_output
from account_tax.export import request as export_request
from account_tax.launch import launcher
from account_tax.launch import preflight as launch_preflight
from account_tax.launch import register as launch_register
from account_tax.parameters.config import Resolved, parse_command_line, resolve
from account_tax.parameters.help import WordsCommand, train_options
from account_tax.parameters.options import VERBOSE, Option, asks_for_all, options_of, read_options
from account_tax.predict import options as predict_options
from account_tax.processes.guard import Stopped, guard_stage
from account_tax.processes.ranks import end_process, end_stage
from account_tax.reproduce import request as reproduce_request
from account_tax.review import compare as review_compare
from account_tax.review import request as review_request
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tuning import command as tuning_command

# OpenMP's threads wait asleep, here and in every process started from here: spinning, they starve
# on a core that another program wants, and a step takes 5 times as long (docs/results.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# At Python's own 700 objects, 0.8 s of 5.7 that torch and its like take to import go into looking
# for garbage that is not there yet.
gc.set_threshold(50_000)

Words = tuple[str, ...]
Asked = TypeVar("Asked")


@click.group(name="account-tax")
def cli() -> None:
    """Commands of account-tax."""


def _command(
    options: type[Any] | Callable[[], list[Option]],
) -> Callable[[Callable[[Words], int]], click.Command]:
    """Return what makes a function a command with the options of a dataclass, or with these.

    What the function returns is the exit status.
    """
    listed = (lambda: [*options_of(options), VERBOSE]) if isinstance(options, type) else options
    made = cli.command(cls=WordsCommand, options=listed)

    def add(function: Callable[[Words], int]) -> click.Command:
        def do(words: Words) -> int:
            with hidden_output() as output:
                settle_libraries(asks_for_all(words))
                status = function(words)
                if output.lost:
                    click.echo(f"standard output: {output.lost}; what followed is lost", err=True)
            # To `mlflow run`, any status but 0 says that the work has failed.
            return status or int(bool(output.lost) and "MLFLOW_RUN_ID" not in os.environ)

        @functools.wraps(function)
        def command(words: Words) -> NoReturn:
            status = do(words)
            parent = click.get_current_context().parent
            if parent and isinstance(parent.command, KedroCLI):  # typed as `kedro COMMAND`
                # To take its libraries apart takes up to a second more, for nothing.
                atexit._run_exitfuncs()
                end_process(status)
            sys.exit(status)

        return made(command)

    return add


def _run(
    read: Callable[[Path, Words], Asked],
    words: Words,
    work: Callable[[Asked, OwnedRun | None], None],
    own_run: Callable[[Asked], bool] = lambda _: True,
) -> int:
    """Read the words, do the work in its MLflow run; only the work may import torch."""
    project = Path.cwd()
    return run_in_mlflow(project, lambda: read(project, words), work, own_run)


@_command(lambda: train_options(Path.cwd()))
def train(words: Words) -> int:
    """Train and register, as `mlflow run . -e train` does.

    Any other key of conf/base/parameters/ goes by its dotted name, as in --train.lora.bias all.
    """
    return launcher.train(Path.cwd(), words)


@_command(lambda: train_options(Path.cwd(), search=True))
def tune(words: Words) -> int:
    """Search for better values, a training a trial; register what the best has trained.

    Parameters are given as to `kedro train`; conf/base/parameters/tuning.yml has the search's own.
    """
    return tuning_command.tune(Path.cwd(), words)


@_command(lambda: train_options(Path.cwd()))
def look(words: Words) -> int:
    """Show what a ledger holds as training would read it, within seconds; keep nothing.

    Parameters are given as to `kedro train`.
    """

    def work(asked: Resolved, _: OwnedRun | None) -> None:
        from account_tax.pipelines.prepare.look import look

        look(asked.values["data"], asked.values["train"])

    def read(project: Path, words: Words) -> Resolved:
        return resolve(project, parse_command_line(words))

    return _run(read, words, work, lambda _: False)


@_command(review_request.Request)
def review(words: Words) -> int:
    """Review a registered version, decide on it, or show the decisions so far.

    Gates are set by their dotted name, as in --registry.gates.min_f1 0.9.
    """

    def work(asked: review_request.Request, run: OwnedRun | None) -> None:
        from account_tax.review.command import review

        review(Path.cwd(), asked, run)

    return _run(review_request.read_request, words, work, lambda asked: not asked.reads_only)


@_command(review_compare.Request)
def compare(words: Words) -> int:
    """Show trained runs or registered versions side by side, on the test split they share."""

    def work(asked: review_compare.Request, run: OwnedRun | None) -> None:
        assert run is not None
        review_compare.compare(asked, run)

    return _run(review_compare.read_request, words, work)


@_command(reproduce_request.Request)
def reproduce(words: Words) -> int:
    """Check a registered version rung by rung, from its bytes to training it again."""

    def work(asked: reproduce_request.Request, run: OwnedRun | None) -> None:
        from account_tax.reproduce.ladder import reproduce_version

        assert run is not None
        reproduce_version(Path.cwd(), asked, run)

    return _run(reproduce_request.read_request, words, work)


@_command(export_request.Request)
def export(words: Words) -> int:
    """Write a registered version as an ordinary Hugging Face folder, merged into its base."""

    def work(asked: export_request.Request, run: OwnedRun | None) -> None:
        from account_tax.export.command import export

        export(Path.cwd(), asked, run)

    return _run(export_request.read_request, words, work, lambda asked: asked.allow_unapproved)


@_command(predict_options.Options)
def predict(words: Words) -> int:
    """File a ledger with a registered version, as `mlflow run . -e predict` does."""

    def work(asked: predict_options.Options, run: OwnedRun | None) -> None:
        from account_tax.predict.command import predict

        assert run is not None
        predict(asked, run)

    return _run(lambda _, words: read_options(predict_options.Options, words)[0], words, work)


@_command(launch_register.Options)
def register(words: Words) -> int:
    """Register what a run has trained, where that was not done, and end the run."""
    return launch_register.register(Path.cwd(), words)


@_command(backend_runs.Options)
def runs(words: Words) -> int:
    """Show the newest runs and what became of them; settle those whose Slurm job has ended."""
    return backend_runs.show_runs(Path.cwd(), words)


@_command(launch_preflight.Options)
def preflight(words: Words) -> int:
    """Check all that can be known before a run is submitted; submit nothing.

    Parameters are given as to `kedro train`. The exit status is 0, or 2 with every fault.
    """
    return launch_preflight.preflight(Path.cwd(), words)


@cli.command(name="run", params=kedro_run.params, help=kedro_run.help)
@click.pass_context
def run(context: click.Context, **options: Any) -> None:
    """Run pipelines as Kedro does, but skip a `prepare` whose result is there already."""
    alone = [options.get("pipeline"), *(options.get("pipelines") or [])]
    if "prepare" in alone and (version := _prepared_version(options)):
        click.echo(f"prepare: skipped, same source bytes and parameters as version {version}")
        return
    guard_stage()
    if is_verbose():
        settle_libraries(True)
    try:
        context.invoke(kedro_run, **options)
    except Stopped as err:
        click.echo(err)
    except Exception:
        end_stage(1)
        raise
    end_stage()


def _prepared_version(options: dict[str, Any]) -> str | None:
    """Return the version of data prepared from what this run would read, if there is one."""
    from kedro.framework.session import KedroSession

    from account_tax.ledger.reading import DataError, source_digest
    from account_tax.pipelines.prepare.nodes import inputs_sha256
    from account_tax.storage.names import PREPARED_FOLDER
    from account_tax.storage.prepared import find_prepared

    created = {"env": options["env"], "conf_source": options["conf_source"]}
    with KedroSession.create(**created, runtime_params=options["params"]) as session:
        parameters = session.load_context().params  # type: ignore[attr-defined]
    data = parameters["data"]
    try:
        key = inputs_sha256(data, parameters["train"], source_digest(data))
    except DataError:
        return None  # the pipeline says what is wrong with it
    return find_prepared(Path(PREPARED_FOLDER), key)
