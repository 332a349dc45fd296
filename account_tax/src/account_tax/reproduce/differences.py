"""Where this machine's inputs differ from what a version's run recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from account_tax.parameters.config import LaunchOptions, Resolved
from account_tax.provenance.environment import differing
from account_tax.registry.record import Difference

# Inputs in the order in which a difference is named: each makes those after it hard to judge.
CAUSES = ("files", "data", "base", "code", "configuration", "environment", "hardware")
HARDWARE = ("cpu", "gpus", "driver")  # of environment.json; cores decide speed only
SYSTEM = ("python", "libc", "torch_cuda")
PLACES = ("data.source", "data.label_map", "train.training.output_dir", "train.model.name")


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return how packages, system and hardware differ from those of a recorded environment.json."""
    packages = [
        f"{name} {here or 'not installed'} instead of {before or 'none'}"
        for name, before, here in differing(then["packages"], now["packages"])
    ]
    system, hardware = (
        [f"{key} {now.get(key)} instead of {then.get(key)}" for key in keys
         if now.get(key) != then.get(key)]
        for keys in (SYSTEM, HARDWARE)
    )  # fmt: skip
    found = {"environment": system + packages, "hardware": hardware}
    return [Difference(cause, "; ".join(texts)) for cause, texts in found.items() if texts]


def configuration_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the dotted keys that decide a result and differ, with both values.

    Places are left out: the data and the base have digests of theirs.
    """
    before, after = (
        Resolved(LaunchOptions(), {name: each[name] for name in ("data", "train")}, {}).flat()
        for each in (then, now)
    )
    texts = [
        f"{key} = {here} instead of {there}"
        for key, there, here in differing(before, after)
        if key not in PLACES
    ]
    return [Difference("configuration", "; ".join(texts))] if texts else []


def first_cause(differences: list[Difference]) -> Difference | None:
    """Return the difference that is named first, or None; what was seen goes before inferences."""
    return min(
        differences, key=lambda each: (each.inferred, CAUSES.index(each.cause)), default=None
    )
