"""The backend configuration for Slurm: its keys, and every fault in one message."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from account_tax.backends.handed_over import find_secret_settings
from account_tax.errors import Refused
from account_tax.faults import hint, tell

WORD = r"^[\w.:,@&|*+\[\]()/-]+$"  # one word of sbatch's; spaces would be options of their own
TIME = r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$"
A_COUNT = "a whole number of at least 1"
A_NAME = "text without spaces"
# Each has a key of its own, or decides how the job is followed.
OWN_OPTIONS = (
    *("account", "constraint", "cpus-per-task", "error", "export", "gpus-per-node", "job-name"),
    *("mem", "nodes", "no-requeue", "ntasks-per-node", "open-mode", "output", "parsable"),
    *("partition", "qos", "requeue", "signal", "test-only", "time", "wait", "wrap"),
)


class SlurmConfigError(Refused):
    """A backend configuration that can't be used; one line for each fault."""

    def __init__(self, faults: list[str]):
        super().__init__(tell(faults, "in the backend configuration"))


def _key(default: Any, words: str, **limits: Any) -> Any:
    return Field(default, description=words, **limits)


class SlurmConfig(BaseModel):
    """What a Slurm job asks for and how it is followed; the words say what each key expects."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    time: str = _key(..., "a limit such as 30, 2:00:00 or 1-12:00:00", pattern=TIME)
    nodes: int = _key(1, A_COUNT, ge=1)
    gpus_per_node: int = _key(0, "a whole number of at least 0", ge=0)
    tasks_per_node: int | None = _key(None, f"{A_COUNT}; without it a rank for each GPU", ge=1)
    cpus_per_task: int | None = _key(None, A_COUNT, ge=1)
    memory_per_node: str | None = _key(None, "a size such as 64G", pattern=r"^\d+[KMGT]?$")
    partition: str | None = _key(None, A_NAME, pattern=WORD)
    account: str | None = _key(None, A_NAME, pattern=WORD)
    qos: str | None = _key(None, A_NAME, pattern=WORD)
    constraint: str | None = _key(None, A_NAME, pattern=WORD)
    options: list[str] = _key([], "a list of sbatch's other options, as --reservation=audit")
    setup: list[str] = _key([], "a list of shell lines, run before the command")
    environment: Literal["local", "uv", "conda"] = _key("local", "one of local, uv, conda")
    shared_folder: str | None = _key(None, "an absolute path that all nodes see", pattern="^/")
    pass_environment: list[str] = _key([], "a list of names of environment variables")
    wait: bool = _key(True, "true or false")
    max_requeues: int = _key(3, "a whole number of at least 0", ge=0)
    notice_seconds: int = _key(60, "a whole number from 1 to 65535", ge=1, le=65535)
    poll_seconds: float = _key(2.0, "a number of at least 0.1", ge=0.1, strict=False)

    @property
    def ranks_per_node(self) -> int:
        """Tasks a node starts."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def sbatch_options(self) -> list[str]:
        """Return what the job asks for, as options of sbatch."""
        asked = {
            "nodes": self.nodes,
            "ntasks-per-node": self.ranks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.memory_per_node,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.time,
        }
        given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        return [*given, *self.options]


def read_config(given: Mapping[str, Any]) -> SlurmConfig:
    """Return the checked configuration.

    Raises:
        SlurmConfigError: With every fault there is.
    """
    faults: list[str] = []
    config = None
    try:
        config = SlurmConfig.model_validate(dict(given))
    except ValidationError as err:
        by_key = {str(each["loc"][0]): each["type"] for each in err.errors()}
        faults = [_fault(key, kind, given) for key, kind in by_key.items()]
    if isinstance(given.get("options"), list):
        faults += _option_faults(given["options"])
    if isinstance(given.get("setup"), list):
        faults += find_secret_settings(given["setup"])
    if faults or config is None:
        raise SlurmConfigError(faults)
    return config


def _fault(key: str, kind: str, given: Mapping[str, Any]) -> str:
    if kind == "extra_forbidden":
        return f"{key}: unknown key. {hint(key.replace('-', '_'), SlurmConfig.model_fields)}"
    expected = SlurmConfig.model_fields[key].description
    if kind == "missing":
        return f"{key}: missing; expected {expected}."
    return f"{key} = {json.dumps(given[key], ensure_ascii=False)}: expected {expected}."


def _option_faults(options: list[Any]) -> list[str]:
    faults = []
    for option in options:
        match = re.match(r"--([a-z][a-z-]*)(=|$)", str(option))
        if match is None:
            faults.append(f"options: {option!r} is not of the form --name or --name=value.")
        elif match[1] in OWN_OPTIONS:
            faults.append(
                f"options: --{match[1]} is settled elsewhere, by a key of its own or by how the "
                "job is followed. Take it out."
            )
    return faults
