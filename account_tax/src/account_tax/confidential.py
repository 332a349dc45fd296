"""What may be shown: names of sources and columns, never secrets, never a cell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

SECRET_NAME = r"\w*(?:TOKEN|PASSW|SECRET|ACCESS_KEY|API_KEY|PRIVATE_KEY|CREDENTIAL)\w*"
SHORTEST_SECRET = 6  # a shorter one stands in any text by chance
HIDDEN = "[hidden]"


def find_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return name -> value of what must not be written anywhere; of a URI its password."""
    found = {}
    for name, value in environment.items():
        if re.fullmatch(SECRET_NAME, name, re.IGNORECASE):
            found[name] = value
        elif "://" in value and "@" in value:
            found[name] = _password(value)
    return {name: value for name, value in found.items() if len(value) >= SHORTEST_SECRET}


def _password(uri: str) -> str:
    try:
        return unquote(urlsplit(uri).password or "")
    except ValueError:  # no URI after all
        return ""


def secrets_in(text: str, environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables whose secret value stands in a text."""
    return sorted(name for name, value in find_secrets(environment).items() if value in text)


def hide_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return a text without the secrets of the environment."""
    for value in find_secrets(environment).values():
        text = text.replace(value, HIDDEN)
    return text


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


def public_words(command: str) -> str:
    """Return a shell's command line without the secrets that URIs in it may hold."""
    uri = re.compile(r"\w[\w+.-]*://.+", re.DOTALL)
    words = (uri.sub(lambda found: public_source(found[0]), word) for word in shlex.split(command))
    return shlex.join(words)
