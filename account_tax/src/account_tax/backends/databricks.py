"""What speaks against `mlflow run . -b databricks`, before it is submitted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from databricks.sdk.errors.base import DatabricksError
from databricks.sdk.service.compute import ClusterSpec
from mlflow.exceptions import MlflowException
from mlflow.utils.databricks_utils import get_databricks_host_creds
from mlflow.utils.rest_utils import http_request_safe
from mlflow.utils.uri import is_databricks_uri

from account_tax.confidential import find_written_secrets
from account_tax.parameters.config import Resolved

from .findings import Findings, key_faults_of, unknown_keys
from .shipped import find_shipped
from .tracking_faults import URI, find_tracking_faults

KEYS = ("new_cluster", "libraries")
REFERENCE = re.compile(r"\{\{secrets/([\w.-]+)/([\w.-]+)\}\}")
SECRET_HINT = "Name it: {{secrets/SCOPE/KEY}}"
WAIT_SECONDS = 10
NEEDED = {"spark_version": "a Databricks runtime", "node_type_id": "a type of machine"}


def checks(project: Path, config: Mapping[str, Any], resolved: Resolved | None) -> Findings:
    """Return every fault of the cluster, the secrets, what is shipped and the workspace."""
    findings = find_shipped(project)
    findings.faults += unknown_keys(config, KEYS)
    findings.faults += find_tracking_faults()
    findings.faults += _registry_faults(config, resolved)
    cluster = config.get("new_cluster")
    if not isinstance(cluster, dict):
        findings.faults.append(
            "new_cluster: missing. MLflow runs projects on a cluster of their own only."
        )
        return findings
    findings.faults += [
        f"new_cluster.{key}: missing; expected {words}."
        for key, words in NEEDED.items()
        if not cluster.get(key)
    ]
    findings.faults += _model_faults(cluster)
    variables = cluster.get("spark_env_vars") or {}
    settings = {**variables, **(cluster.get("spark_conf") or {})}
    findings.faults += find_written_secrets(settings, REFERENCE, SECRET_HINT)
    findings.faults += key_faults_of(variables, "new_cluster.spark_env_vars")
    findings.faults += _library_faults(config.get("libraries") or [])
    _ask_workspace(cluster, settings, resolved, findings)
    return findings


def _model_faults(cluster: dict[str, Any]) -> Iterator[str]:
    """Check the cluster against the model of the published API: it drops what it does not know."""
    try:
        read = ClusterSpec.from_dict(cluster).as_dict()
    except (TypeError, ValueError, AttributeError) as err:
        yield f"new_cluster: can't be read as one ({type(err).__name__}: {err})."
        return
    for key in sorted(cluster.keys() - read.keys()):
        yield f"new_cluster.{key} = {cluster[key]}: Databricks knows no such key or no such value."


def _library_faults(libraries: list[Any]) -> Iterator[str]:
    names = [(each.get("pypi") or {}).get("package", "") for each in libraries]
    if not any(re.match(r"uv\b", name) for name in names):
        yield (
            'libraries: no {"pypi": {"package": "uv==..."}}. The cluster needs it for the locked '
            "environment: --env-manager uv"
        )


def _registry_faults(config: Mapping[str, Any], resolved: Resolved | None) -> Iterator[str]:
    """Unity Catalog is where a workspace registers unless told otherwise; its names have parts."""
    variables = (config.get("new_cluster") or {}).get("spark_env_vars") or {}
    named = variables.get("MLFLOW_REGISTRY_URI", "databricks-uc")
    if resolved is None or resolved.launch.register is not True:
        return
    name = resolved.values["registry"]["name"]
    in_catalog = is_databricks_uri(os.environ.get(URI, "")) and named.startswith("databricks-uc")
    if in_catalog and name.count(".") != 2:
        yield (
            f"registry.name = {name}: Unity Catalog expects CATALOG.SCHEMA.NAME. Give "
            "-P registered_model_name=..., or set MLFLOW_REGISTRY_URI to databricks in "
            "spark_env_vars for the workspace's own registry."
        )


def _ask_workspace(
    cluster: dict[str, Any],
    settings: Mapping[str, Any],
    resolved: Resolved | None,
    findings: Findings,
) -> None:
    """Ask the workspace that MLflow would submit to whether it has all that the job names."""
    try:
        credentials = get_databricks_host_creds(os.environ.get(URI))
        findings.facts["workspace"] = credentials.host
        versions = _get(credentials, "/api/2.0/clusters/spark-versions").get("versions", [])
        types = _get(credentials, "/api/2.0/clusters/list-node-types").get("node_types", [])
        findings.faults += _cluster_faults(cluster, versions, types, resolved)
        findings.faults += list(_reference_faults(credentials, settings))
    except (MlflowException, DatabricksError, ValueError) as err:
        findings.faults.append(
            f"workspace: {' '.join(str(err).split())[:300]} MLflow submits to DATABRICKS_HOST with "
            "DATABRICKS_TOKEN, or to a profile of the Databricks client."
        )


def _cluster_faults(
    cluster: dict[str, Any],
    versions: list[dict[str, Any]],
    types: list[dict[str, Any]],
    resolved: Resolved | None,
) -> Iterator[str]:
    version, node = cluster.get("spark_version"), cluster.get("node_type_id")
    if version and version not in (each.get("key") for each in versions):
        yield f"new_cluster.spark_version = {version}: the workspace does not have it."
    known = {each.get("node_type_id"): each for each in types}
    if node and node not in known:
        yield f"new_cluster.node_type_id = {node}: the workspace does not have it."
    wanted = resolved.launch.num_gpus if resolved else "auto"
    gpus = int(known.get(node, {}).get("num_gpus", 0))
    if node in known and isinstance(wanted, int) and wanted > max(1, gpus):
        yield f"num_gpus = {wanted}: a {node} has {gpus}."


def _reference_faults(credentials: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """Look for each secret by its name; its value is not asked for."""
    for name, value in settings.items():
        if not (match := REFERENCE.fullmatch(str(value))):
            continue
        scope, key = match.groups()
        try:
            listed = _get(credentials, "/api/2.0/secrets/list", scope=scope).get("secrets", [])
        except MlflowException as err:
            yield f"{name}: scope {scope}: {' '.join(err.message.split())[:200]}"
            continue
        if key not in (each["key"] for each in listed):
            yield f"{name}: the scope {scope} has no secret {key}."


def _get(credentials: Any, endpoint: str, **query: str) -> dict[str, Any]:
    """Return an answer of the workspace.

    Raises:
        MlflowException: If it is none.
    """
    answer = http_request_safe(
        credentials, endpoint, "GET", params=query, max_retries=0, timeout=WAIT_SECONDS
    )
    return json.loads(answer.text)
