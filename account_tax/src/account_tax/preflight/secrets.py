"""Secrets in a configuration have to be named, not written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from account_tax.backends.secrets import SECRET_NAME


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
