"""What was kept of a version's training, and where this machine's inputs differ from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from account_tax.registry.record import Difference

# Inputs in the order in which a difference is named: each makes those after it hard to judge.
CAUSES = ("files", "data", "base", "code", "configuration", "environment", "hardware")
HARDWARE = ("cpu", "gpus", "driver")  # of environment.json; cores decide speed only
SYSTEM = ("python", "libc", "torch_cuda")


# --- then and now ---------------------------------------------------------------------------------


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return how packages, system and hardware differ from those of a recorded environment.json."""
    before, after = then["packages"], now["packages"]
    packages = [
        f"{name} {after.get(name, 'not installed')} instead of {before.get(name, 'none')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    system = list(_other_values(then, now, SYSTEM))
    hardware = list(_other_values(then, now, HARDWARE))
    found = {"environment": system + packages, "hardware": hardware}
    return [Difference(cause, "; ".join(texts)) for cause, texts in found.items() if texts]


def _other_values(
    then: Mapping[str, Any], now: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[str]:
    for key in keys:
        if then.get(key) != now.get(key):
            yield f"{key} {now.get(key)} instead of {then.get(key)}"


def configuration_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the dotted keys that decide a result and differ, with both values."""
    before, after = _deciding(then), _deciding(now)
    texts = [
        f"{key} = {after.get(key)} instead of {before.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return [Difference("configuration", "; ".join(texts))] if texts else []


def _deciding(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` and `train` by dotted key, without places; the data have a digest of theirs."""
    sections = {name: parameters[name] for name in ("data", "train")}
    places = ("data.source", "train.training.output_dir", "train.model.name")
    return {key: value for key, value in _leaves(sections, "") if key not in places}


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def first_cause(differences: list[Difference]) -> Difference | None:
    """Return the difference that is named first, or None; what was seen goes before inferences."""
    return min(
        differences, key=lambda each: (each.inferred, CAUSES.index(each.cause)), default=None
    )
