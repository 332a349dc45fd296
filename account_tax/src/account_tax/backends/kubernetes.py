"""What speaks against `mlflow run .#backends/kubernetes -b kubernetes`, before it is submitted."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import load_project

from account_tax.confidential import find_written_secrets
from account_tax.parameters.config import Resolved

from .findings import Findings, key_faults_of, unknown_keys
from .tracking_faults import find_tracking_faults

PROJECT = Path("backends", "kubernetes")  # in it lies the second project file
KEYS = ("kube-context", "kube-job-template-path", "repository-uri")
PLACEHOLDER = re.compile(r"registry\.example\.com|@sha256:0{64}$")
PINNED = re.compile(r"[\w.:/-]+@sha256:[0-9a-f]{64}")
GPU = "nvidia.com/gpu"
WAIT_SECONDS = 10
SECRET_HINT = "Use valueFrom.secretKeyRef."
WITH = "uv run --no-project --with 'kubernetes<37' --with kubernetes-validate kedro preflight ..."


def checks(project: Path, config: Mapping[str, Any], resolved: Resolved | None) -> Findings:
    """Return every fault of the configuration, the image, the job, the clients and the cluster."""
    findings = Findings(unknown_keys(config, KEYS))
    findings.faults += _repository_faults(config.get("repository-uri"))
    findings.faults += _project_faults(project / PROJECT, findings.facts)
    findings.faults += find_tracking_faults()
    findings.faults += _client_faults()
    job = _read_job(project, config, findings)
    if job:
        container = job["spec"]["template"]["spec"]["containers"][0]
        findings.faults += _schema_faults(job)
        findings.faults += _secret_faults(container, findings.facts)
        named = [each.get("name") for each in container.get("env") or [] if isinstance(each, dict)]
        findings.faults += key_faults_of(named, "env of the job template")
        findings.faults += _resource_faults(job, container, resolved)
        _ask_cluster(job, config.get("kube-context"), findings)
    return findings


# --- files ----------------------------------------------------------------------------------------


def _repository_faults(uri: Any) -> Iterator[str]:
    if not isinstance(uri, str) or not uri or PLACEHOLDER.search(uri):
        yield (
            f"repository-uri = {uri}: a placeholder. Give the repository that the image of each "
            "run is pushed to: REGISTRY/account-tax"
        )
    elif "@" in uri or ":" in uri.rpartition("/")[2]:
        yield f"repository-uri = {uri}: MLflow adds the tag itself. Give it without one."


def _project_faults(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Check the project file as MLflow reads it, and the image that it names."""
    try:
        spec = load_project(str(folder))
        image = (spec.docker_env or {}).get("image", "")
        spec.get_entry_point("train")
    except (OSError, ExecutionException, yaml.YAMLError, AttributeError) as err:
        yield f"{PROJECT}/mlproject: {' '.join(str(err).split())}"
        return
    facts["image"] = image
    if PLACEHOLDER.search(image):
        yield (
            f"image = {image} ({PROJECT}/mlproject): a placeholder. Build docker/Dockerfile, push "
            "it, and give its reference with the digest."
        )
    elif not PINNED.fullmatch(image):
        yield (
            f"image = {image} ({PROJECT}/mlproject): a tag may mean another image tomorrow. Pin it "
            "by digest: REGISTRY/account-tax@sha256:..."
        )
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    facts["shipped"] = f"{size / 1024:,.1f} KiB, the files of {PROJECT}/"
    extra = [path.name for path in folder.iterdir() if path.is_dir()]
    if extra:
        yield f"{PROJECT}/: --build-image would put {', '.join(extra)} into the image. Move it out."


def _read_job(
    project: Path, config: Mapping[str, Any], findings: Findings
) -> dict[str, Any] | None:
    """Return the job as MLflow would send it but for the run's own values, or add a fault."""
    name = config.get("kube-job-template-path")
    try:
        text = (project / str(name)).read_text(encoding="utf-8")
        job = yaml.safe_load(text)
        namespace = job["metadata"]["namespace"]
        container = job["spec"]["template"]["spec"]["containers"][0]
        container |= {"name": "account-tax", "image": "account-tax", "command": ["kedro"]}
    except OSError:
        findings.faults.append(f"kube-job-template-path = {name}: no such file.")
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as err:
        findings.faults.append(
            f"kube-job-template-path = {name}: MLflow needs metadata.namespace and "
            f"spec.template.spec.containers[0] in it ({type(err).__name__}: {err})."
        )
    else:
        job["metadata"]["name"] = "account-tax-preflight"
        findings.facts["namespace"] = namespace
        return job
    return None


def _schema_faults(job: dict[str, Any]) -> Iterator[str]:
    """Check the job against the published schema, unknown keys included."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        return
    schemas = importlib.import_module("kubernetes_validate")
    try:
        schemas.validate(job, schemas.latest_version(), strict=True)
    except (schemas.ValidationError, schemas.SchemaNotFoundError) as err:
        where = ".".join(map(str, getattr(err, "path", None) or ())) or "the job"
        yield f"job template, {where}: {err.message}"
    except (KeyError, TypeError) as err:
        yield f"job template: apiVersion and kind have to be text ({type(err).__name__}: {err})."


def _secret_faults(container: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    entries = [each for each in container.get("env") or [] if isinstance(each, dict)]
    named = [each["valueFrom"].get("secretKeyRef") for each in entries if each.get("valueFrom")]
    facts["secrets"] = ", ".join(f"{each['name']}/{each['key']}" for each in named if each) or None
    written = {str(each.get("name")): each["value"] for each in entries if each.get("value")}
    return find_written_secrets(written, re.compile(r"(?!)"), SECRET_HINT)


def _resource_faults(
    job: dict[str, Any], container: dict[str, Any], resolved: Resolved | None
) -> Iterator[str]:
    """Check what the pod asks for against the ranks that are to run in it."""
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    for name in ("cpu", "memory"):
        if name not in limits and name not in (resources.get("requests") or {}):
            yield f"resources: no {name} is asked for. Set requests and limits in the job template."
    gpus = int(limits.get(GPU, 0))
    wanted = resolved.launch.num_gpus if resolved else "auto"
    if isinstance(wanted, int) and wanted > gpus:
        yield f"num_gpus = {wanted}: the pod is given {gpus} ({GPU} in the job template)."
    mounted = {each.get("mountPath") for each in container.get("volumeMounts") or []}
    if max(gpus, wanted if isinstance(wanted, int) else 0) > 1 and "/dev/shm" not in mounted:
        yield (
            "volumeMounts: no /dev/shm. Ranks of one pod talk through it, and it has 64 MiB unless "
            "an emptyDir with medium: Memory is mounted there."
        )


# --- clients and cluster --------------------------------------------------------------------------


def _client_faults() -> Iterator[str]:
    """Check for what MLflow calls: a Docker engine, and the Kubernetes client it can work with."""
    if shutil.which("docker") is None:
        yield "docker: not found on PATH, and MLflow builds and pushes an image for each run."
    elif subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        yield "docker: `docker info` fails, so no engine answers. Start it, or set DOCKER_HOST."
    missing = [
        name for name in ("kubernetes", "kubernetes_validate") if not importlib.util.find_spec(name)
    ]
    if missing:
        yield f"Python packages {', '.join(missing)}: not installed here. Call it so: {WITH}"
    elif int(importlib.import_module("kubernetes").__version__.split(".")[0]) > 36:
        # MLflow 3.17 hands it pretty=True, which the generated client of 37 takes as text only.
        yield f"Python package kubernetes: 37 and newer refuse MLflow 3.17's calls. Use: {WITH}"


def _ask_cluster(job: dict[str, Any], context: str | None, findings: Findings) -> None:
    """Let the cluster itself check the job, without starting it: a dry run on the server."""
    if not importlib.util.find_spec("kubernetes"):
        return
    kube, exceptions = map(importlib.import_module, ("kubernetes", "kubernetes.client.exceptions"))
    errors = importlib.import_module("urllib3.exceptions")
    try:
        kube.config.load_kube_config(context=context)
    except (OSError, kube.config.ConfigException) as err:
        findings.faults.append(
            f"kube-context = {json.dumps(context)}: {_one_line(err)}. Take one "
            "of `kubectl config get-contexts`, or null for the current one."
        )
        return
    host = kube.client.Configuration.get_default_copy().host
    findings.facts["cluster"] = host
    namespace = job["metadata"]["namespace"]
    try:
        kube.client.BatchV1Api().create_namespaced_job(
            namespace, job, dry_run="All", field_validation="Strict", _request_timeout=WAIT_SECONDS
        )
        findings.faults += _claim_faults(kube, exceptions.ApiException, job)
    except exceptions.ApiException as err:
        findings.faults.append(f"{host}, namespace {namespace}: {_said(err)}")
    except errors.HTTPError as err:
        findings.faults.append(f"{host}: can't be reached ({_one_line(err)}).")


def _claim_faults(kube: Any, error: type[Exception], job: dict[str, Any]) -> Iterator[str]:
    """Look for each volume that the job takes for granted; a pod waits for one for ever."""
    namespace = job["metadata"]["namespace"]
    for volume in job["spec"]["template"]["spec"].get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if not claim:
            continue
        try:
            kube.client.CoreV1Api().read_namespaced_persistent_volume_claim(
                claim, namespace, _request_timeout=WAIT_SECONDS
            )
        except error as err:
            yield f"volume {volume['name']}: claim {claim} in {namespace}: {_said(err)}"


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())[:200].rstrip(".")


def _said(err: Any) -> str:
    """Return an answer of the API server in its own words."""
    try:
        text = json.loads(err.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = err.reason
    return f"{err.status} {text}"
