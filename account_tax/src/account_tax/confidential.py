"""What may be shown: names of sources and columns, never secrets, never a cell."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ParamSpec, TextIO, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from account_tax.errors import Failed

Given = ParamSpec("Given")
Result = TypeVar("Result")

SECRET_NAME = (
    r"(?:\w*(?:TOKEN|PASSW|PASSPHRASE|SECRET|ACCESS_KEY|API_?KEY|ACCOUNT_KEY|STORAGE_KEY|"
    r"PRIVATE_KEY|CREDENTIAL|CONNECTION_STRING)\w*|\w*_(?:PASS|PWD|PAT)|SSHPASS)"
)
SHORTEST_SECRET = 6  # a shorter one stands in any text by chance
HIDDEN = "[hidden]"
# Of a URI in any text: a user's password, whoever a web server is told (a token, say), and a query.
PASSWORD = re.compile(r"(?<=://)[^\s@'\"]*:[^\s'\"]*(?=@)")
WEB_USER = re.compile(r"(?<=http://)[^\s/@'\"]+(?=@)|(?<=https://)[^\s/@'\"]+(?=@)")
QUERY = re.compile(r"(\w://[^\s?#'\"]*\?)[^\s?'\"]*=[^\s'\"]*")
# Of what is a URI as a whole, where quotes and blanks may stand in a password.
USER = re.compile(r"://([^/?#]*)@")
# Of a connection string of Azure's: what opens the account.
OPENING = re.compile(r"(\b(?:AccountKey|SharedAccessSignature|sig)=)([^;&\s'\"]+)", re.IGNORECASE)
# Libraries whose errors tell of servers and devices; those of others may quote a cell.
OUTSPOKEN = ("account_tax", "mlflow", "torch", "requests", "click")


# --- secrets --------------------------------------------------------------------------------------


def find_secrets(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of what must not be written anywhere; of a URI its password."""
    for name, value in environment.items():
        found = set[str]()
        if re.fullmatch(SECRET_NAME, name, re.I):
            found = {value, *(secret for _, secret in OPENING.findall(value))}
        if "://" in value:
            users = PASSWORD.findall(value) + USER.findall(value)
            passwords = [each.partition(":")[2] for each in users]
            found |= {*passwords, *map(unquote, passwords)}
        # The longest first: what is a part of it must not leave the rest.
        for secret in sorted(found, key=len, reverse=True):
            if len(secret) >= SHORTEST_SECRET:
                yield name, secret


def secrets_in(text: str, environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables whose secret value stands in a text."""
    return sorted({name for name, value in find_secrets(environment) if value in text})


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what may be shown of a text: all that is printed, logged or kept goes through here."""
    for _, value in find_secrets(os.environ if environment is None else environment):
        text = text.replace(value, HIDDEN)
    for secret in (PASSWORD, WEB_USER):
        text = secret.sub(HIDDEN, text)
    for before in (QUERY, OPENING):
        text = before.sub(rf"\1{HIDDEN}", text)
    return text


def holds_secret(source: str) -> bool:
    """Return whether a source's URI says who asks for it: a password, or a query as signed ones."""
    users = USER.findall(source)
    known = any(":" in user or source.startswith("http") for user in users)
    return "://" in source and (known or hide_secrets(source, {}) != source)


@contextmanager
def hidden_logs(folder: Path) -> Iterator[None]:
    """Take the secrets out of the logs below a folder, when what writes them has ended."""
    try:
        yield
    finally:
        for log in folder.rglob("*.log"):
            text = log.read_text(encoding="utf-8", errors="surrogateescape")
            if (hidden := hide_secrets(text)) != text:
                log.write_text(hidden, encoding="utf-8", errors="surrogateescape")


class _Hiding:
    """A stream of text that shows no secret.

    A reader that has left, as head does, ends nothing, nor does a disk that is full; `lost` says
    why the rest could not be written.
    """

    lost = ""

    def __init__(self, stream: TextIO | None):  # None: closed, as by `>&-`
        self._stream = stream or Path(os.devnull).open("w")  # noqa: SIM115

    def write(self, text: str) -> int:
        with self._outliving_its_reader():
            self._stream.write(hide_secrets(text))
        return len(text)

    def flush(self) -> None:
        with self._outliving_its_reader():
            self._stream.flush()

    @contextmanager
    def _outliving_its_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if not isinstance(err, BrokenPipeError):
                self.lost = str(err.strerror)
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def hidden_output() -> Iterator[_Hiding]:
    """Show no secret of what is printed meanwhile; bytes, such as a filed ledger, go by.

    Yields standard output, for what of it was lost.
    """
    hiding: list[Any] = [_Hiding(sys.stdout), _Hiding(sys.stderr)]
    with redirect_stdout(hiding[0]), redirect_stderr(hiding[1]):
        yield hiding[0]


def find_written_secrets(
    settings: Mapping[str, Any], reference: re.Pattern[str], hint: str
) -> list[str]:
    """Return a fault for each setting that holds a secret itself; the value is never repeated.

    Args:
        settings: Name to value, of environment variables or the like.
        reference: What a value that only names a secret looks like.
        hint: How to name one.
    """
    return [
        f"{name}: a secret is written here, for all who can read the job. {hint}"
        for name, value in settings.items()
        if re.fullmatch(SECRET_NAME, name.replace(".", "_"), re.IGNORECASE)
        and not reference.fullmatch(str(value))
    ]


def public_source(source: str) -> str:
    """Return the source's name without what a URI may hold in secret: password and query."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# --- cells ----------------------------------------------------------------------------------------


def without_quotes(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make a function that reads a ledger fail without a library's words, which may quote it."""

    @functools.wraps(function)
    def quoteless(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except Exception as err:
            if is_outspoken(err):
                raise
            raise Failed(describe_error(err)) from None

    return quoteless


def describe_error(err: BaseException) -> str:
    """Return what an error that nobody expected says, or where it was raised."""
    kind = f"unexpected {type(err).__name__}"
    if is_outspoken(err):
        return f"{kind}: {err}"
    raised = [(Path(e.filename), e.lineno) for e in traceback.extract_tb(err.__traceback__)]
    ours = [each for each in raised if "site-packages" not in each[0].parts and each[0].is_file()]
    places = [f"{file.name}:{line}" for file, line in (ours or raised)[-3:]]
    return f"{kind} at {', '.join(places)}; its words may quote the ledger and are not shown"


def is_outspoken(err: BaseException) -> bool:
    """Return whether an error's words are its own, not a cell's that it could not take."""
    # An error of the system has a number; pyarrow raises others of the same kind.
    of_system = isinstance(err, OSError) and err.errno is not None
    return of_system or type(err).__module__.partition(".")[0] in OUTSPOKEN
