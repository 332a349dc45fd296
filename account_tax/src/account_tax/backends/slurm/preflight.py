"""What speaks against `mlflow run . -b slurm`: the backend's own checks, asked before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from account_tax.backends.findings import Findings
from account_tax.backends.tracking_faults import URI, is_loopback
from account_tax.errors import Refused
from account_tax.parameters.config import Resolved

from .config import read_config
from .job import require_slurm


def checks(project: Path, config: Mapping[str, Any], resolved: Resolved | None) -> Findings:
    """Return the faults of the configuration, a missing client, and a server nodes can't reach."""
    findings = Findings()
    try:
        read = read_config(config)
        findings.facts["job"] = " ".join(read.sbatch_options())
    except Refused as err:
        findings.faults += [line.strip() for line in str(err).splitlines()[1:]]
    try:
        require_slurm()
    except (Refused, RuntimeError) as err:
        findings.faults.append(str(err))
    uri = os.environ.get(URI, "")
    if is_loopback(urlsplit(uri).hostname or ""):
        findings.faults.append(
            f"{URI} = {uri}: loopback, which on a node is the node itself. Give the name by which "
            "the nodes reach the server, or a full sqlite:// path on storage they share."
        )
    return findings
