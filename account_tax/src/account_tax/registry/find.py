"""A registered version as a stranger meets it: named, downloaded, and each file checked."""

from __future__ import annotations

import re

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Refused
from account_tax.tracking.store import answers_soon, condition

GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # deleted for good, or never one
DENIED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


def parse_model_uri(uri: str) -> tuple[str, str]:
    """Return the name and the version or alias of `models:/name/3` or `models:/name@champion`."""
    if not (match := URI.fullmatch(uri)):
        raise Refused(f"model = {uri}: expected models:/NAME/VERSION or models:/NAME@ALIAS.")
    return match["name"], match["version"] or match["alias"]


def find_version(client: MlflowClient, name: str, reference: str) -> ModelVersion:
    """Return a version by its number or alias.

    Raises:
        Refused: If there is none; the message lists those there are. Or if no run made it.
        TrackingError: If the registry can't be asked.
    """
    with answers_soon(client.tracking_uri):
        try:
            if reference.isdigit():
                version = client.get_model_version(name, reference)
            else:
                version = client.get_model_version_by_alias(name, reference)
        except MlflowException as err:
            there = _what_there_is(client, name)
            raise Refused(f"{name} {reference}: {str(err.message).rstrip('.')}. {there}") from err
    if not version.run_id:
        raise Refused(
            f"{name} version {version.version}: it names no run, so it is of no training "
            "here. Take another version."
        )
    return version


def _what_there_is(client: MlflowClient, name: str) -> str:
    found = client.search_model_versions(condition("name", name))
    numbers = sorted(int(each.version) for each in found)
    if not numbers:
        return f"Nothing is registered as {name}."
    aliases = client.get_registered_model(name).aliases
    named = ", ".join(f"{alias} is {number}" for alias, number in sorted(aliases.items()))
    return f"There are the versions {', '.join(map(str, numbers))}; {named or 'no alias is set'}."
