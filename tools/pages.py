"""Photographs MLflow's pages of this project's store, for the README.

    python tools/pages.py [--uri sqlite:///mlflow.db] [--to docs/pages]

Starts `mlflow ui` on a free port of this machine and a headless Chromium, which has to be
installed, and writes a PNG of each page: the runs, the newest training, two trainings compared, the
registered model and its newest version.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from mlflow import MlflowClient
from PIL import Image

WAIT_SECONDS, DRAWN_MS = 60, 15000
KEPT = (1260, 1000)  # pixels; the rest is MLflow's assistant


def list_pages(uri: str) -> dict[str, str]:
    """Return the path of each page, by name; those that there is something for."""
    client = MlflowClient(uri)
    (experiment, *_) = client.search_experiments()
    number = experiment.experiment_id
    trained = client.search_runs(
        [number], "tags.`account_tax.kind` = 'train' and attributes.status = 'FINISHED'"
    )
    runs = [run.info.run_id for run in trained]
    pages = {"runs": f"/experiments/{number}/runs"}
    for run_id in runs[:1]:
        pages["run"] = f"/experiments/{number}/runs/{run_id}"
    if len(runs) > 1:
        chosen = quote(json.dumps(runs[:2]))
        pages["compare"] = f"/compare-runs?runs={chosen}&experiments={quote(json.dumps([number]))}"
    for model in client.search_registered_models():
        pages["model"] = f"/models/{quote(model.name)}"
        newest = max(int(each.version) for each in model.latest_versions)
        pages["version"] = f"/models/{quote(model.name)}/versions/{newest}"
    return pages


def serve(uri: str) -> tuple[subprocess.Popen[bytes], str]:
    """Return a running `mlflow ui` and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], **quiet)
    address = f"http://127.0.0.1:{port}"
    for _ in range(WAIT_SECONDS):
        try:
            urlopen(f"{address}/health").close()
            return server, address
        except URLError:
            time.sleep(1)
    server.terminate()
    raise SystemExit("mlflow ui does not answer")


def photograph(browser: str, url: str, file: Path) -> None:
    """Write a page as PNG, once it is drawn."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={profile}", "--window-size=1700,1000"),
                *(f"--virtual-time-budget={DRAWN_MS}", f"--screenshot={file}", url),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    with Image.open(file) as whole:
        whole.crop((0, 0, *KEPT)).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    """Photograph all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", default="sqlite:///mlflow.db")
    parser.add_argument("--to", type=Path, default=Path("docs/pages"))
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium on PATH")
    given.to.mkdir(parents=True, exist_ok=True)
    server, address = serve(given.uri)
    try:
        for name, path in list_pages(given.uri).items():
            mark = "&" if "?" in path else "?"
            url = f"{address}/#{path}{mark}workflowType=machine_learning"
            photograph(browser, url, given.to.resolve() / f"{name}.png")
            print(f"{name}.png  {path}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
