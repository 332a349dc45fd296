"""The typed parameters: merge, cast, check, hash; every fault in one message."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from account_tax import schema
from account_tax.schema import Section, Words

NOT_GIVEN = "from_recipe"  # MLproject's default: the recipe's value stands
RECIPE_SECTIONS = ("data", "train", "registry")
PRECISIONS = {"fp32": ("false", "false"), "bf16": ("true", "false"), "fp16": ("false", "true")}
FLAGS = ("register", "dry_run")  # a bare `--dry-run` means true
# Where a run writes; it decides nothing about what comes out.
PLACES = ("artifacts_root", "train.training.output_dir")
Tree = dict[str, Any]


class ConfigError(ValueError):
    """Parameters that can't be used; `faults` has one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        noun = "problem" if len(self.faults) == 1 else "problems"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{len(self.faults)} {noun} in the parameters{lines}")


@dataclass(frozen=True)
class LaunchOptions:
    """What the launcher itself needs to know."""

    recipe: str = "starter"
    num_gpus: int | Literal["auto"] = "auto"
    register: bool = True
    dry_run: bool = False
    master_port: int | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Resolved:
    """The checked parameters of one run, and where each was set."""

    launch: LaunchOptions
    values: Tree
    sources: dict[str, str]

    def flat(self) -> Tree:
        """Return the values by dotted key."""
        return dict(_leaves(self.values))

    @property
    def sha256(self) -> str:
        """The digest of everything that decides the result, so of all but places and launch."""
        kept = {key: value for key, value in self.flat().items() if key not in PLACES}
        text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the values as YAML, in their own order."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Fault:
    """One problem: the key, its value as shown, and what is wrong."""

    key: str
    text: str
    shown: str = ""


@dataclass(frozen=True)
class Setting:
    """One value of the command line: its key, its text, and the name the user typed."""

    key: str
    text: str
    source: str


def parse_command_line(args: Sequence[str]) -> list[tuple[str, str]]:
    """Return `--a.b c`, `--a.b=c` and bare flags as (name, text) pairs.

    Raises:
        ConfigError: If a word is no option, or an option has no value.
    """
    pairs: list[tuple[str, str]] = []
    faults: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name if "." in name else name.replace("-", "_")
        if not word.startswith("--") or not name:
            faults.append(f"{word}: expected an option such as --train.lora.r 8.")
        elif equals:
            pairs.append((name, text))
        elif words and not words[0].startswith("--"):
            pairs.append((name, words.pop(0)))
        elif name in FLAGS:
            pairs.append((name, "true"))
        else:
            faults.append(f"{word}: expected a value after it, as in {word}=VALUE.")
    if faults:
        raise ConfigError(faults)
    return pairs


def resolve(project: Path, overrides: Sequence[tuple[str, str]]) -> Resolved:
    """Return the parameters of a run: conf < recipe < command line, cast and checked.

    Raises:
        ConfigError: If anything is wrong; all faults together, each with where it was set.
    """
    faults: list[Fault] = []
    aliases = _read_aliases(project / "MLproject")
    settings = _collect(overrides, aliases, faults)
    options = schema.launch_options()
    launch_settings = {key: settings.pop(key) for key in options.fields if key in settings}
    launch_values = {s.key: _cast_text(s.text, options.fields[s.key]) for s in settings_of(launch_settings)}
    launch = LaunchOptions(**_check(options, launch_values, "", faults))
    layers = _read_layers(project, launch.recipe, settings, faults)
    merged, sources = _merge(layers)
    values = _check(schema.parameters(), merged, "", faults)
    ...
