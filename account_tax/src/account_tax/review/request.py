"""What `kedro review` is asked for, every fault at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from account_tax.errors import Refused
from account_tax.parameters.config import NOT_GIVEN, parse_command_line, resolve

from .gates import gate_names

NONE = "none"  # MLproject's default: the option is not given
DECISIONS = ("approve", "reject", "retire", "rollback")


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        name: The registered model.
        version: A number or an alias.
        decision: One of DECISIONS; None reviews only.
        reviewer: Who decides.
        reason: Why.
        waive: Gates that need not be passed.
        expires: Until when an approval holds.
        slices: Columns of the ledger.
        data: Where the ledger is now.
        history: Whether to print the decisions.
        verify_history: Whether to check their chain.
        registry: The parameters of registry.yml.
    """

    name: str
    version: str
    decision: str | None
    reviewer: str
    reason: str
    waive: list[str]
    expires: str | None
    slices: list[str]
    data: str | None
    history: bool
    verify_history: bool
    registry: dict[str, Any]


def parse_request(project: Path, options: Mapping[str, str], more: Sequence[str]) -> Request:
    """Return what is asked for, checked.

    Raises:
        Refused: If an option can't be what it is; all faults together.
    """
    given = {name: _given(text) for name, text in options.items()}
    pairs = parse_command_line(more)
    faults = [_unknown(name, options) for name, _ in pairs if not name.startswith("registry.")]
    if faults:
        raise Refused(_join(faults))
    if name := given["registered_model_name"]:
        pairs.append(("registry.name", name))
    registry = resolve(project, pairs).values["registry"]
    decision, waive = given["decision"], _list(given["waive"])
    faults = [*_decision_faults(given, waive), *_flag_faults(options)]
    if faults:
        raise Refused(_join(faults))
    return Request(
        name=registry["name"],
        version=given["version"] or registry["alias"],
        decision=decision,
        reviewer=given["reviewer"] or "",
        reason=given["reason"] or "",
        waive=waive,
        expires=given["expires"],
        slices=_list(given["slices"]),
        data=given["data"],
        history=options["history"].lower() == "true",
        verify_history=options["verify_history"].lower() == "true",
        registry=registry,
    )


def _given(text: str) -> str | None:
    stripped = text.strip()
    return None if stripped.lower() in (NONE, NOT_GIVEN, "") else stripped


def _list(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _unknown(name: str, options: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, options, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name}: unknown option; beside {', '.join(options)} only registry.* is taken.{hint}"


def _decision_faults(given: Mapping[str, str | None], waive: Sequence[str]) -> Iterator[str]:
    decision = given["decision"]
    if decision is None:
        for name in ("waive", "expires", "reviewer", "reason"):
            if given[name]:
                yield f"{name} = {given[name]}: has a meaning only beside a decision."
        return
    if decision not in DECISIONS:
        yield f"decision = {decision}: expected one of {', '.join(DECISIONS)}."
    for name, what in (("reviewer", "who decides"), ("reason", "why")):
        if not given[name]:
            yield f"{name}: missing; a decision says {what}, as in -P {name}=..."
    for name in ("waive", "expires"):
        if given[name] and decision != "approve":
            yield f"{name} = {given[name]}: has a meaning only with decision=approve."
    known = gate_names()
    for gate in waive:
        if gate not in known:
            near = difflib.get_close_matches(gate, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
            yield f"waive = {gate}: no such gate. {hint}"


def _flag_faults(options: Mapping[str, str]) -> Iterator[str]:
    for name in ("history", "verify_history"):
        if options[name].lower() not in ("true", "false"):
            yield f"{name} = {options[name]}: expected true or false."


def _join(faults: Sequence[str]) -> str:
    noun = "problem" if len(faults) == 1 else "problems"
    return f"{len(faults)} {noun} in the options" + "".join(f"\n  {fault}" for fault in faults)
