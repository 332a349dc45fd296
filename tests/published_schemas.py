"""Checks the Kubernetes files against the published schemas; a script, since the lock has them not.

uv run --no-project --isolated --with kubernetes-validate --with kubeflow-training \
    python tests/published_schemas.py JOB.yaml PYTORCHJOB.yaml

A Job and the pods are checked with the JSON schemas of Kubernetes, unknown keys included
(kubernetes-validate). Of the PyTorchJob's own schema there is no package, but of its models
(kubeflow-training, generated from it): what they don't know they drop, and that is a fault.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import yaml
from kubeflow.training.api_client import ApiClient


def find_faults(resource: dict[str, Any]) -> Iterator[str]:
    """Yield what the published schemas say against a resource."""
    if resource["kind"] != "PyTorchJob":
        yield from _validate(resource)
        return
    client = ApiClient()
    text = SimpleNamespace(data=json.dumps(resource))
    try:
        known = client.deserialize(text, "KubeflowOrgV1PyTorchJob")
    except ValueError as err:  # a key that has to be there is missing
        yield str(err)
        return
    yield from _find_lost(resource, client.sanitize_for_serialization(known), "job")
    for name, replica in resource["spec"]["pytorchReplicaSpecs"].items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}}
        yield from _validate(pod | {"spec": replica["template"]["spec"]})


def _validate(resource: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as err:
        yield f"{'.'.join(map(str, err.path))}: {err.message}"


def _find_lost(given: Any, known: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict):
        for key, value in given.items():
            if key not in (known or {}):
                yield f"{path}.{key}: unknown key"
            else:
                yield from _find_lost(value, known[key], f"{path}.{key}")
    elif isinstance(given, list):
        for number, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from _find_lost(one, other, f"{path}.{number}")
    elif given != known:
        yield f"{path}: {given!r} is read as {known!r}"


if __name__ == "__main__":
    found = [
        f"{name}: {fault}"
        for name in sys.argv[1:]
        for fault in find_faults(yaml.safe_load(Path(name).read_text(encoding="utf-8")))
    ]
    sys.stdout.write("\n".join(found))
    sys.exit(bool(found))
