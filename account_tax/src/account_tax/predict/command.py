"""`kedro predict`: from what is asked to a filed ledger, or to one clear reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta

import click
import mlflow
import torch
from mlflow import MlflowClient

from account_tax.errors import Failed
from account_tax.ledger.amounts import settle_sums
from account_tax.model.classifier import load_classifier
from account_tax.processes.groups import Interrupted
from account_tax.storage.files import scratch_folder, sha256_of
from account_tax.storage.names import TAG, UNAPPROVED_TAG
from account_tax.terminal import ProgressLine
from account_tax.tracking.owned_run import OwnedRun

from .answering import LABEL, REVIEW, Desk, file_ledger
from .options import Options
from .parts import Journal, open_journal
from .plan import Plan, added_columns, make_plan
from .sinks import make_sink
from .streams import as_files

REJECTS_STATUS = 3
SHOWN_ACCOUNTS = 50
FORMULAS = (
    "=, +, - or @ begins a cell, which a spreadsheet runs. Cells are written as they were read: "
    "import such a file as text"
)


def predict(options: Options, run: OwnedRun) -> None:
    """File a ledger with a registered version.

    Raises:
        Refused: If it can't be filed.
        Failed: With status 3 where all rows are filed but those that can't be read.
    """
    mlflow.set_tracking_uri(run.tracking_uri)
    with (
        scratch_folder() as scratch,
        as_files(options, scratch) as asked,
    ):
        plan = make_plan(MlflowClient(run.tracking_uri), asked, scratch)
        metrics = _file(plan, run)
        run.log_metrics(metrics)
        run.set_tags({f"{TAG}output_sha256": sha256_of(plan.options.output)})
    _refuse_rejects(plan, *(int(metrics[f"predict/rows_{it}"]) for it in ("rejected", "written")))


def _file(plan: Plan, run: OwnedRun) -> dict[str, float]:
    """File the ledger, show what came of it, and return that as metrics."""
    options = plan.options
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with open_journal(options.output, plan.key(device)) as (journal, removed):
        precision, why = plan.precision(device)
        tags = _tags(plan) | {f"{TAG}precision": precision}
        run.introduce("predict", f"with {plan.model.title}", tags)
        if removed:
            click.echo("predict: removed the parts of another input, model or set of options")
        begun = f", going on after row {journal.total('read'):,}" if journal.notes else ""
        click.echo(f"predict: reads {plan.source.read_as}")
        click.echo(f"predict: {plan.model.title} on {device} in {precision} ({why}){begun}")
        if plan.model.unapproved:
            click.echo(f"mind this: {plan.model.title}: {plan.model.unapproved}", err=True)
        classifier = load_classifier(plan.model.folder, device).merge()
        classifier.bf16 = precision == "bf16"
        desk = Desk(classifier, options.top_k, plan.thresholds, options.amount_column)
        sink = make_sink(options.output, plan.source, added_columns(options.top_k))
        before = plan.source.state()
        try:
            with _telling(plan.source.lines()) as tell:
                read, seconds = file_ledger(
                    desk, plan.source, sink, journal, options.batch_rows, tell
                )
            if plan.source.state() != before:
                raise Failed(f"{options.input.name} was changed while it was read. Run it again.")
            rows = journal.totals()
            journal.publish(sink, options.output, options.rejects, plan.source.unit)
        except (Interrupted, OSError) as err:
            _explain(err, journal, options)
            raise
    return _show(plan, rows, read, seconds)


def _explain(err: BaseException, journal: Journal, options: Options) -> None:
    rows, name = journal.total("read"), options.output_name
    kept = f"{rows:,} rows are kept beside {name}: the same command goes on"
    kept = "nothing is kept of it" if options.streamed else kept
    if isinstance(err, OSError):  # a disk that is full, say
        raise Failed(f"predict failed: {err.strerror}. {kept}.") from err
    click.echo(f"predict: {kept}", err=True)


@contextmanager
def _telling(lines: int | None) -> Iterator[Callable[[int, float], None]]:
    """Yield what tells rows, rows a second and, by the lines there are, the time left."""
    said = ""

    def tell(rows: int, rate: float) -> None:
        nonlocal said
        said = f"predict: {rows:,} rows, {rate:,.0f} a second"
        if lines is not None and rate:
            said += f", {timedelta(seconds=round(max(lines - rows, 0) / rate))} left"
        line.draw()

    with closing(ProgressLine(lambda: said)) as line:
        yield tell


def _show(plan: Plan, rows: Mapping[str, int], read: int, seconds: float) -> dict[str, float]:
    """Print the summary and return it as metrics; the rate is that of the rows read just now."""
    rejected = rows["read"] - rows["written"]
    share, rate = rows["review"] / max(rows["written"], 1), read / max(seconds, 1e-9)
    words = plan.threshold_in_words
    below = "no threshold: give -P threshold" if words == "none" else (
        f"score below {words}" if words[0].isdigit() else f"threshold {words}"
    )  # fmt: skip
    for name, text in {
        "rows read": f"{rows['read']:,}",
        "rows written": f"{rows['written']:,}",
        "rows rejected": f"{rejected:,}" + (f" ({plan.options.rejects_name})" * bool(rejected)),
        "needs review": f"{share:.2%} ({below})" * bool(rows["written"]),
        "formulas": f"in {rows['formulas']:,} of the rows: {FORMULAS}" * bool(rows["formulas"]),
        "totals": f"{rows['totals']:,} rows read as such: for review, and in the sums below"
        * bool(rows["totals"]),
        "seconds": f"{seconds:.1f}",
        "rows a second": f"{rate:,.0f}",
    }.items():
        if text:
            click.echo(f"{name:<24} {text}")
    _show_accounts(rows, summed=plan.options.amount_column is not None)
    click.echo(f"{plan.options.output_name}: filed by {plan.model.title}")
    return {
        "predict/rows_read": rows["read"],
        "predict/rows_written": rows["written"],
        "predict/rows_rejected": rejected,
        "predict/needs_review_share": share,
        "predict/seconds": seconds,
        "predict/rows_per_sec": rate,
    }


def _show_accounts(rows: Mapping[str, int], *, summed: bool) -> None:
    """Print how many rows each account has, and their amount, the most frequent first."""
    names = sorted(
        (name.removeprefix(LABEL) for name in rows if name.startswith(LABEL)),
        key=lambda name: (-rows[f"{LABEL}{name}"], name),
    )
    sums, unread = settle_sums(rows, names)
    digits = 2 * any(total % 1 for total in sums.values())
    for name in names[:SHOWN_ACCOUNTS]:
        review = rows.get(f"{REVIEW}{name}", 0)
        amount = f", amount {sums[name]:,.{digits}f}" * summed
        click.echo(f"{name:<24} {rows[f'{LABEL}{name}']:,} ({review:,} for review){amount}")
    if len(names) > SHOWN_ACCOUNTS:
        click.echo(f"{len(names) - SHOWN_ACCOUNTS} more accounts")
    if unread:
        click.echo(f"{'amounts':<24} {unread:,} rows have none that can be read")


def _tags(plan: Plan) -> dict[str, str]:
    """Return what was filed by what: names and digests, no path and no text."""
    version, unapproved = plan.model.version, plan.model.unapproved
    return ({UNAPPROVED_TAG: unapproved} if unapproved else {}) | {
        f"{TAG}model": f"models:/{version.name}/{version.version}",
        f"{TAG}content_sha256": plan.model.content_sha256,
        f"{TAG}input": plan.options.input.name,
        f"{TAG}input_sha256": plan.input_sha256,
        f"{TAG}input_read_as": plan.source.read_as,
        f"{TAG}output": plan.options.output.name,
        f"{TAG}threshold": plan.threshold_in_words,
    }


def _refuse_rejects(plan: Plan, rejected: int, written: int) -> None:
    if rejected and not written:
        given = plan.options.encoding
        hint = f" Is the file written in {given} (-P encoding)?" * bool(given)
        raise Failed(
            f"none of the {rejected:,} rows can be filed; {plan.options.rejects_name} has their "
            f"{plan.source.unit} numbers and reasons.{hint}",
            REJECTS_STATUS,
        )
    if rejected and plan.options.on_error == "fail":
        raise Failed(
            f"{rejected:,} row{'s' * (rejected > 1)} can't be filed; {plan.options.rejects_name} "
            f"has their {plan.source.unit} numbers and reasons. All others are in "
            f"{plan.options.output_name}. With -P on_error=skip this is no failure.",
            REJECTS_STATUS,
        )
