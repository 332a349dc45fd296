"""Which environment variables a job is given, by name alone, and which of them nobody may read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from account_tax.confidential import SECRET_NAME
from account_tax.provenance.signing import VERIFY_VARIABLE

# What the login node's shell says about the programs, the network and the stores. Not what it says
# about its own hardware: CUDA_VISIBLE_DEVICES and TMPDIR are the compute node's to set.
PROGRAMS = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LANG", "LC_*"),
    *("OMP_*", "NCCL_*", "GLOO_*", "TORCH_*", "CC", "CXX", "CUDA_HOME"),
    *("*_proxy", "*_PROXY", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "DO_NOT_TRACK"),
)
PASSED = (
    *(*PROGRAMS, VERIFY_VARIABLE),
    *("MLFLOW_*", "AWS_*", "AZURE_*", "GOOGLE_*", "DATABRICKS_*", "HF_*", "HUGGING_FACE_*"),
)
# And what it says about this machine, to a program here that is not to have its user's secrets.
HERE = (
    *("HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "XDG_*", "PYTHON*", "SLURM_*"),
    *("CUDA_*", "NVIDIA_*", "MKL_*", "PYTORCH_*", "TOKENIZERS_*", "TRANSFORMERS_*", "DS_*"),
    *("HF_HOME", "HF_HUB_*"),
)


def passed_names(environment: Mapping[str, str], more: Iterable[str]) -> list[str]:
    """Return the names of the variables that another machine gets with the values they have here.

    `more` are names, or patterns of them, beside those that any machine gets.
    """
    return _names_like(environment, [*PASSED, *more])


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a program on this machine needs of an environment to train, nothing else."""
    kept = _names_like(environment, [*PROGRAMS, *HERE])
    hidden = re.compile(SECRET_NAME, re.IGNORECASE)
    return {
        name: environment[name]
        for name in kept
        if not (hidden.fullmatch(name) or re.search("://.*@", environment[name]))
    }


def _names_like(environment: Mapping[str, str], patterns: Sequence[str]) -> list[str]:
    return sorted(n for n in environment if any(fnmatchcase(n, each) for each in patterns))


def find_secret_settings(setup: Iterable[Any]) -> list[str]:
    """Return a fault for each setup line that would write a secret into the job script."""
    faults = []
    for number, line in enumerate(setup, start=1):
        for name in re.findall(rf"\b({SECRET_NAME})=[^\s]", str(line), re.IGNORECASE):
            faults.append(
                f"setup: line {number} sets {name}, and would be written to the job script. "
                f'Export {name} in the shell you submit from; "pass_environment": ["{name}"] '
                "hands it over by name."
            )
    return faults
