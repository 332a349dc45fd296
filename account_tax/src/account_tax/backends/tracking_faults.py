"""Whether a job elsewhere can log to the tracking server that this machine names."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import is_databricks_uri

from account_tax.confidential import hide_secrets
from account_tax.tracking.store import short_waits

URI, IN_CLUSTER = "MLFLOW_TRACKING_URI", "KUBE_MLFLOW_TRACKING_URI"
TOKEN_HINT = "a job is readable to many. Give MLFLOW_TRACKING_TOKEN to the job as a secret instead"


def find_tracking_faults() -> list[str]:
    """Return why a job could not log to the server that MLFLOW_TRACKING_URI names.

    MLflow hands the address on as it is; for Kubernetes KUBE_MLFLOW_TRACKING_URI replaces it, so
    then the first one needs to hold here only.
    """
    uri, inside = os.environ.get(URI, ""), os.environ.get(IN_CLUSTER)
    faults = list(_outside_faults(IN_CLUSTER, inside) if inside else _outside_faults(URI, uri))
    if inside and urlsplit(uri).scheme not in ("http", "https"):
        faults.append(
            f"{URI} = {uri or '(not set)'}: {IN_CLUSTER} is for the job; the run itself is made "
            "from here, on the same server. Give its address as seen from here."
        )
    return [hide_secrets(fault) for fault in faults or _server_faults(uri)]


def _outside_faults(name: str, uri: str) -> Iterator[str]:
    """Yield why an address means nothing to another machine, or too much."""
    if is_databricks_uri(uri):
        return
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        yield (
            f"{name} = {uri or '(not set)'}: a store of this machine, which the job can't reach. "
            "Give the address of a server that both reach: https://HOST"
        )
    elif is_loopback(parts.hostname or ""):
        yield (
            f"{name} = {uri}: loopback, which for the job is its own machine. "
            "Give the name by which others reach the server."
        )
    if parts.password:
        yield f"{name}: holds a password, and {TOKEN_HINT}."


def is_loopback(host: str) -> bool:
    """Return whether a host name means whichever machine it is said on."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _server_faults(uri: str) -> Iterator[str]:
    """Yield why the server is of no use: silent, or its artifacts lie on its own disk."""
    if is_databricks_uri(uri):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        if not name.startswith("/") and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            yield (
                f"MLFLOW_EXPERIMENT_NAME = {name or '(not set)'}: in a workspace an experiment has "
                "a path. Set it: /Shared/account-tax"
            )
        return
    try:
        with short_waits():
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            experiment = MlflowClient(uri).get_experiment_by_name(name)
    except MlflowException as err:
        yield f"{URI} = {uri}: {' '.join(err.message.split())[:300]}"
        return
    if experiment and urlsplit(experiment.artifact_location).scheme in ("", "file"):
        yield (
            f"experiment {name}: its artifacts go to {experiment.artifact_location}, a folder that "
            "the job does not have. Start the server with --serve-artifacts, or take another "
            "experiment."
        )
