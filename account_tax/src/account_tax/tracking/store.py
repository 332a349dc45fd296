"""The tracking server or file: which it is, whether it answers, how long to wait for it."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from urllib3 import HTTPConnectionPool, connection

from account_tax.confidential import hide_secrets
from account_tax.errors import Failed, Refused
from account_tax.storage.files import first_there, lock, why_not_writable

DEFAULT_EXPERIMENT = "Default"  # where `mlflow run` puts its runs, too
PATIENCE_VARIABLE = "ACCOUNT_TAX_TRACKING_PATIENCE"  # seconds
PATIENCE_SECONDS = 120.0  # how long the end of a run waits for a server that is away
RETRY_SECONDS = 2.0
MAKING_SECONDS = 60.0  # what one that makes a new store's tables may take, when all are busy
LOCKED_SECONDS = 10.0  # how long a store that another process holds is waited for
FULL = "disk is full"  # in SQLite's words, as most below
WRITABLE = "Give a file that can be written to."
RESTORE = "Restore it from a backup, or give another file."
ADVICE = {
    FULL: "Free some space, then run the command again.",
    "readonly database": WRITABLE,
    "locked": "Another process holds it: wait for its end, or look for one that hangs.",
    "not a database": RESTORE,
    "malformed": RESTORE,
    "unexpected state": RESTORE,  # in MLflow's words, a table is missing
    "out-of-date": "The address is the one named here. If that fails, a newer MLflow than this "
    "made it: give another file.",
}
SCHEMA_TABLE = "alembic_version"  # by which MLflow knows its database
FINAL_ANSWERS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")
SHORT_WAITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class TrackingError(Refused):
    """The tracking server can't be used."""


class TrackingAway(Failed):
    """The tracking server has not answered for as long as it was waited for."""


class HTTPConnection(connection.HTTPConnection):  # as messages call it
    """A connection that acknowledges the head of an answer at once.

    `mlflow server` with several workers, its default, holds the rest back until then: uvicorn
    leaves Nagle's algorithm on (https://github.com/Kludex/uvicorn/issues/3149), and Linux
    acknowledges after 40 ms. A call takes 8 ms instead of 50, and a run makes 80 of them.
    """

    def getresponse(self) -> Any:
        """Return the answer, its head acknowledged."""
        if hasattr(socket, "TCP_QUICKACK") and self.sock:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().getresponse()


# For every call of this process; in front of TLS is another program.
HTTPConnectionPool.ConnectionCls = HTTPConnection  # pyright: ignore


def is_final(err: TrackingError) -> bool:
    """Return whether the server has answered, so that asking again changes nothing."""
    return getattr(err.__cause__, "error_code", None) in FINAL_ANSWERS or FULL in str(err)


def patience_seconds() -> float:
    """Return how long the end of a run waits for a server that is away."""
    given = os.environ.get(PATIENCE_VARIABLE, "")
    return float(given) if given.isdigit() else PATIENCE_SECONDS


def tracking_uri(project: Path) -> str:
    """Return the store of runs and models: MLFLOW_TRACKING_URI, or mlflow.db in the project.

    A relative path of SQLite is made absolute, so that every stage finds the same file.

    Raises:
        TrackingError: If a file can't be the store, which MLflow would try for 90 s to find out.
    """
    own = project.resolve() / "mlflow.db"
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"
    file = _relative_file(given)
    uri = given if file is None else absolute_store(given, _folder_meant(file))
    if fault := _file_fault(uri):
        raise TrackingError(f"MLFLOW_TRACKING_URI = {uri}: {fault}")
    if Path(_path_of(uri)) == own and (old := moved_from(own)):
        raise TrackingError(
            f"{own}: the artifacts of its runs are recorded below {old}, where nothing is, and lie "
            f"below {own.parent}: the folder was moved. `kedro runs --moved_from {old}` rewrites "
            "the recorded paths of this store; nothing else is touched."
        )
    return uri


def _advice(said: str, otherwise: str) -> str:
    """Return what to do about a store, by the words of its driver or MLflow."""
    return next((advice for words, advice in ADVICE.items() if words in said), otherwise)


def _file_fault(uri: str) -> str:
    """Return why the file of a store can't be used, and what to do; empty: it can, or is none."""
    if not (file := _file_of(uri)):
        return ""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        if not Path(file).exists():  # it is not for this to make it
            why = why_not_writable(Path(file).parent)
            return f"{why}. {WRITABLE}" if why else ""
        with closing(sqlite3.connect(file, timeout=LOCKED_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")
            tables = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if tables and (SCHEMA_TABLE,) not in tables:  # MLflow would add its own to them
            return "a database of another program. Give another file."
    except (OSError, sqlite3.Error) as err:
        said = getattr(err, "strerror", None) or str(err)
        return f"{said}. {_advice(said, WRITABLE)}"
    return ""


def _file_of(uri: str) -> str:
    """Return the file of a SQLite store; empty: it has none."""
    file = _path_of(uri)
    is_file = uri.partition(":///")[0].split("+")[0] == "sqlite" and file != ":memory:"
    return file if is_file and not file.startswith("file:") else ""  # with SQLite's own options


def open_store(uri: str) -> MlflowClient:
    """Return a client of a store; a file that is new gets its tables first.

    Raises:
        TrackingError: If its tables can't be made, or were left half made.
    """
    try:
        if file := _file_of(uri):
            _make_tables(uri, Path(file))
        return MlflowClient(uri)
    except Exception as err:
        # What MLflow lets through; sqlalchemy and alembic take 0.2 s to import.
        if type(err).__module__.partition(".")[0] not in ("sqlalchemy", "alembic", "sqlite3"):
            raise
        said = str(getattr(err, "orig", err)).partition("\n")[0]
        otherwise = "Start the database, or unset the variable to log to mlflow.db in the project."
        if _file_of(uri):
            otherwise = (
                "A command that made them was killed, or two did so at once. Remove it if nothing "
                "was logged to it yet, else restore it from a backup."
            )
        start = f"MLFLOW_TRACKING_URI = {uri}: its tables can't be made or read"
        raise TrackingError(f"{start} ({said}). {_advice(said, otherwise)}") from err


def _make_tables(uri: str, file: Path) -> None:
    """Make the tables of a new store beside it, and put it where it belongs when it is whole.

    In place (MLflow 3.17), one that is killed leaves half of them, and two at once both fail.
    """
    if file.exists() and file.stat().st_size:
        return
    with _sole_maker(file.parent):
        if file.exists() and file.stat().st_size:  # another command was first
            return
        aside = file.parent / f".{file.name}.making"
        shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
        aside.mkdir()
        try:
            MlflowClient(uri.replace(str(file), str(aside / file.name), 1)).search_experiments()
            (aside / file.name).replace(file)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _sole_maker(folder: Path) -> Iterator[None]:
    """Hold a store's folder, which leaves nothing there, as long as it may take."""
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            lock(held, MAKING_SECONDS)
        except BlockingIOError:
            raise sqlite3.OperationalError("database is locked") from None
        except OSError:
            pass  # some network's files can't be locked
        yield
    finally:
        os.close(held)


# Where a store keeps the absolute paths of artifacts.
PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def moved_from(store: Path) -> str:
    """Return where a project's own artifacts were, if its folder was moved since; else nothing."""
    if not store.is_file():
        return ""
    with closing(sqlite3.connect(store)) as database, suppress(sqlite3.Error):
        for (place,) in database.execute("SELECT artifact_uri FROM runs"):
            old, _, rest = str(place).removeprefix("file://").rpartition("/mlruns/")
            elsewhere = old and Path(old) != store.parent and not Path(old, "mlruns").exists()
            if elsewhere and (store.parent / "mlruns" / rest).exists():
                return old
    return ""


def rewrite_places(store: Path, old: str) -> int:
    """Rewrite the paths below a project's former folder; return how many there were."""
    if not old or moved_from(store) != old:
        raise TrackingError(f"{store}: it was not moved from {old}. Nothing was changed.")
    with closing(sqlite3.connect(store)) as database, database:
        return sum(
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?) "
                f"WHERE {column} LIKE ? OR {column} LIKE ?",
                (f"{old}/", f"{store.parent}/", f"{old}/%", f"file://{old}/%"),
            ).rowcount
            for table, column in PLACES.items()
        )


def absolute_store(uri: str, folder: Path | None = None) -> str:
    """Return a store's URI as it reads from any folder; a relative path is one of `folder`."""
    if (file := _relative_file(uri)) is None:
        return uri
    return uri.replace(f":///{file}", f":///{(folder or Path.cwd()) / file}", 1)


def _folder_meant(file: str) -> Path:
    """Return the folder from which the run that was handed over is found at a relative path.

    `mlflow run URI` makes the run in the folder it is typed in, and starts the project in a clone
    elsewhere, with the same relative path: so the folders of the processes above are tried too.
    """
    here = psutil.Process()
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        for process in (here, *here.parents()):
            with suppress(psutil.Error):  # another user's
                folder = Path(process.cwd())
                if _has_run(folder / file, run_id):
                    return folder
    return Path.cwd()


def _has_run(store: Path, run_id: str) -> bool:
    """Return whether a file is a store that knows a run; none is made where there is no file."""
    if not store.is_file():
        return False
    with suppress(MlflowException), short_waits():
        MlflowClient(f"sqlite:///{store}").get_run(run_id)
        return True
    return False


def _relative_file(uri: str) -> str | None:
    """Return the path in a `sqlite:///` URI, if it depends on the working directory."""
    scheme, file = uri.partition(":///")[0], _path_of(uri)
    relative = scheme.split("+")[0] == "sqlite" and file not in ("", ":memory:")
    return file if relative and not file.startswith("/") else None


def _path_of(uri: str) -> str:
    return uri.partition(":///")[2].partition("?")[0]


def refuse_another_store(uri: str, run_id: str) -> None:
    """Refuse a relative path at which nobody on the way to here has the run.

    Another store would be made otherwise, which nobody would look into.

    Raises:
        TrackingError: With the form that means the same file everywhere.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if (file := _relative_file(given)) is None or _has_run(Path(_path_of(uri)), run_id):
        return
    raise TrackingError(
        f"MLFLOW_TRACKING_URI = {given}: a path relative to the folder it is used in. The run "
        f"{run_id} was started from another folder than {Path.cwd()}, where the project runs, so "
        "it is not in the store that this names here. Give the full path, with four slashes: "
        f"sqlite:////FOLDER/{Path(file).name}"
    )


def refuse_unwritable(artifacts: str) -> None:
    """Refuse a folder of this machine that artifacts go to and can't be written to.

    Raises:
        TrackingError: With why, and where it is set.
    """
    place = urlsplit(artifacts)
    if place.scheme not in ("", "file"):
        return
    folder = Path(unquote(place.path))
    if why := why_not_writable(first_there(folder)):
        raise TrackingError(
            f"{folder}: the experiment's artifacts go there, and it can't be written to ({why}). "
            "Make it writable, or set MLFLOW_EXPERIMENT_NAME to one whose artifacts go elsewhere."
        )


def page(uri: str, path: str) -> str:
    """Return where MLflow shows something: its address, or what to start first.

    Args:
        uri: Of the tracking server or file.
        path: In MLflow's pages, such as models/NAME/versions/1.
    """
    path = f"{path}?workflowType=machine_learning"  # without it MLflow shows its GenAI side
    if uri.startswith("http"):
        return f"{hide_secrets(uri.rstrip('/'))}/#/{path}"
    start = f"mlflow server --backend-store-uri {hide_secrets(uri)}"
    return f"http://127.0.0.1:5000/#/{path} once `{start}` runs"


def condition(key: str, value: object, how: str = "=") -> str:
    """Return MLflow's condition on a key's value; every filter string is made of these."""
    quote = '"' if "'" in str(value) else "'"
    if quote in str(value) or "\\" in str(value):
        raise Refused(f"{key} = {value}: MLflow can't search for a name with such quotes.")
    return f"{key} {how} {quote}{value}{quote}"


@contextmanager
def answers_soon(uri: str) -> Iterator[None]:
    """Turn errors of the store to TrackingError, and wait for a server seconds, not minutes."""
    try:
        with short_waits():
            yield
    except ImportError as err:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI = {uri}: the database's driver {err.name} is not in this "
            "environment. Start `mlflow server --backend-store-uri` with this URI where the driver "
            "is, and give the server's address."
        ) from err
    except MlflowException as err:
        otherwise = "Start the server, or unset the variable to log to mlflow.db in the project."
        if err.error_code == "RESOURCE_DOES_NOT_EXIST":
            otherwise = "`kedro runs` shows those there are."
        # The driver's own words: SQLAlchemy adds statement, values and remarks.
        said = str(getattr(err.__cause__, "orig", err.message)).partition("\n")[0]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI = {uri}: {said.rstrip('.')}. {_advice(said, otherwise)}"
        ) from err


def short_waits() -> AbstractContextManager[None]:
    """Make MLflow wait for a server seconds, not minutes, where nothing else was asked for.

    While a run is under way MLflow's own patience is right; before and after it a person waits.
    """
    return mlflow_defaults(SHORT_WAITS)


@contextmanager
def mlflow_defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Set those of MLflow's variables that nobody has set, for a time."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: before[name] or value for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def experiment_id(client: MlflowClient) -> str:
    """Return the experiment that new runs go to, made where there is none."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    if experiment and experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_NAME = {name}: this experiment was deleted. Restore it (mlflow "
            f"experiments restore -x {experiment.experiment_id}), or give another name."
        )
    if experiment:
        return experiment.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        if not (made := client.get_experiment_by_name(name)):
            raise
        return made.experiment_id  # another command was first
