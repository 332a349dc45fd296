"""Services that a job is submitted to, on loopback: real HTTP that answers as told and records.

No cluster is here. The clients are the real ones (kubernetes, docker, MLflow's own for Databricks),
so what is recorded is what a cluster would be sent.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUILT = "sha256:" + "b" * 64  # id of the image the engine builds
PUSHED = "sha256:" + "c" * 64  # the digest its registry gives it


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """An address, what arrived there, and who answers: (status, value as JSON) or None for 404."""

    answer: Callable[[Request], tuple[int, Any] | None]
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sent(self, method: str, pattern: str) -> list[Request]:
        """Return the requests of a method whose path matches from its beginning to its end."""
        return [
            each
            for each in self.requests
            if each.method == method and re.fullmatch(pattern, each.path)
        ]


@contextmanager
def serving(answer: Callable[[Request], tuple[int, Any] | None]) -> Iterator[Service]:
    """Serve on a free port of loopback until the block ends."""
    service = Service(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            request = Request(
                self.command, parts.path, query, dict(self.headers), self._read_body()
            )
            service.requests.append(request)
            status, value = service.answer(request) or (404, {"message": f"no {parts.path}"})
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- Kubernetes -----------------------------------------------------------------------------------


def kubernetes_api(ends_as: str, namespace: str, claims: tuple[str, ...]) -> Callable:
    """Return the answers of an API server whose jobs end as `Complete` or `Failed`."""

    def answer(request: Request) -> tuple[int, Any] | None:
        if request.path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"} | dict.fromkeys(
                ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"), ""
            )
        if match := re.fullmatch(r"/api/v1/namespaces/[^/]+/(\w+)/([^/]+)", request.path):
            there = match[1] == "persistentvolumeclaims" and match[2] in claims
            return (200, {"metadata": {"name": match[2]}}) if there else None
        if not request.path.startswith(f"/apis/batch/v1/namespaces/{namespace}/jobs"):
            return None
        if request.method == "POST":
            return 201, request.json
        # https://kubernetes.io/docs/concepts/workloads/controllers/job: conditions of a Job
        condition = {"type": ends_as, "status": "True", "message": f"the fake job is {ends_as}"}
        status = {"startTime": "2026-01-01T00:00:00Z", "conditions": [condition]}
        return 200, {"status": status}

    return answer


def kube_config(api: Service, token: str = "") -> dict[str, Any]:
    """Return a client's configuration that names the service as its cluster."""
    user = {"name": "me", "user": {"token": token}}
    cluster = {"name": "fake", "cluster": {"server": api.address}}
    context = {"name": "fake", "context": {"cluster": "fake", "user": "me"}}
    named = {"clusters": [cluster], "users": [user], "contexts": [context]}
    return {"apiVersion": "v1", "kind": "Config", "current-context": "fake", **named}


# --- Docker engine --------------------------------------------------------------------------------


def docker_engine() -> Callable:
    """Return the answers of an engine that builds, tags and pushes whatever it is given."""
    tags: list[str] = []

    def answer(request: Request) -> tuple[int, Any] | None:
        path = re.sub(r"^/v1\.\d+", "", request.path)
        if path == "/_ping":
            return 200, b"OK"
        if path == "/version":
            return 200, {"ApiVersion": "1.48", "MinAPIVersion": "1.24", "Version": "28"}
        if path == "/info":
            return 200, {"ID": "fake", "ServerVersion": "28", "OSType": "linux"}
        if path == "/build":
            tags.append(request.query["t"])
            return 200, {"stream": f"Successfully built {BUILT.removeprefix('sha256:')}"}
        if path.endswith("/push"):
            return 200, {"status": "pushed"}
        if path.startswith("/distribution/"):
            return 200, {"Descriptor": {"digest": PUSHED}, "Platforms": []}
        if path.startswith("/images/") and path.endswith("/json"):
            return 200, {"Id": BUILT, "RepoTags": tags}
        return None

    return answer


def files_of(archive: bytes) -> dict[str, bytes]:
    """Return name -> content of the files in a .tar.gz, without the folder around them."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        members = [each for each in tar.getmembers() if each.isfile()]
        return {
            each.name.partition("/")[2]: found.read()
            for each in members
            if (found := tar.extractfile(each))
        }


# --- Databricks -----------------------------------------------------------------------------------


def databricks_workspace(ends_as: str, secrets: dict[str, list[str]]) -> Callable:
    """Return the answers of a workspace whose jobs end as SUCCESS or FAILED."""
    known: dict[tuple[str, str], Any] = {
        ("GET", "/api/2.0/clusters/spark-versions"): {
            "versions": [{"key": "15.4.x-gpu-ml-scala2.12", "name": "15.4 LTS ML GPU"}]
        },
        ("GET", "/api/2.0/clusters/list-node-types"): {
            "node_types": [{"node_type_id": "g5.xlarge", "num_gpus": 1}]
        },
        ("POST", "/api/2.0/jobs/runs/submit"): {"run_id": 7},
        ("GET", "/api/2.0/jobs/runs/get"): {
            "run_page_url": "https://workspace/#job/7",
            "state": {"life_cycle_state": "TERMINATED", "result_state": ends_as},
        },
    }

    def answer(request: Request) -> tuple[int, Any] | None:
        if request.path == "/api/2.0/secrets/list":
            keys = secrets.get(request.query.get("scope", ""))
            there = keys is not None
            return (200, {"secrets": [{"key": key} for key in keys]}) if there else None
        if request.path == "/api/2.0/dbfs/get-status":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not there"}
        if request.method == "POST" and request.path.startswith("/dbfs/"):
            return 200, {}
        found = known.get((request.method, request.path))
        return None if found is None else (200, found)

    return answer
