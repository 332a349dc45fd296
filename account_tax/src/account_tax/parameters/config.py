"""The typed parameters: merge, cast, check, hash; every fault in one message."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from account_tax.confidential import hide_secrets
from account_tax.errors import Refused
from account_tax.faults import hint, nearest, tell
from account_tax.storage.files import canonical_sha256

from .batch import PLACE, SIZES, sizes_that_follow
from .conflicts import conflicts
from .kinds import Section, cast_text, convert, describe
from .schema import LAUNCH_FLAGS, LaunchOptions, everything, refusal

NONE_GIVEN = ("none", "")  # of a command without a recipe; of one with, it may be a value
RECIPE_SECTIONS = ("data", "train", "registry")
PRECISION_KEYS = ("train.training.bf16", "train.training.fp16")
PRECISIONS = {"fp32": ("false", "false"), "bf16": ("true", "false"), "fp16": ("false", "true")}
# Where a run writes and what it may register; they decide nothing about what comes out.
NO_PART = (
    "artifacts_root",
    "train.training.output_dir",
    "registry.allow_unlocked",
    "registry.sign_key",
)
GATES = "registry.gates."  # what a review asks of a version; they have no part in it either
BASE = "train.model.name"
UNKNOWN = "unknown parameter"
MOST_NAMED = 20  # a message names no more
MOST_SHOWN = 200  # characters of a value
Tree = dict[str, Any]
Pair = tuple[str, str | None]  # a name and its text; a word that is no option's has none


class ConfigError(Refused):
    """Parameters that can't be used; `faults` has one line for each.

    `usable` has the sections without a fault, so that what they point to can be checked as well
    and everything is said at once; None where a word or a file can't be read.
    """

    def __init__(self, faults: Sequence[str], usable: "Resolved | None" = None) -> None:
        self.faults, self.usable = list(faults), usable
        super().__init__(tell(self.faults, "in the parameters"))


@dataclass(frozen=True)
class Resolved:
    """The checked parameters of one run, and where each was set."""

    launch: LaunchOptions
    values: Tree
    sources: dict[str, str]
    tuning: Tree = field(default_factory=Tree)  # of `kedro tune` alone; no part of a run

    def flat(self) -> Tree:
        """Return the values by dotted key."""
        return dict(_leaves(self.values))

    def given(self, key: str) -> bool:
        """Return whether the command line has set a key: by -P or --, as `_name_sources` says."""
        return self.sources.get(key, "").startswith("-")

    def deciding(self) -> Tree:
        """Return what decides the result by dotted key, so all but places, gates and launch."""
        return {
            key: value
            for key, value in self.flat().items()
            if key not in NO_PART and not key.startswith(GATES)
        }

    @property
    def sha256(self) -> str:
        """The digest of what decides the result."""
        return canonical_sha256(self.deciding())

    @property
    def precision(self) -> str:
        """The one word for two keys."""
        given = {word: self.flat().get(f"train.training.{word}") for word in ("bf16", "fp16")}
        return next((word for word, on in given.items() if on), "fp32")

    def to_yaml(self) -> str:
        """Return the values as YAML, in their own order."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Fault:
    """One problem: the key, what is wrong, the value as shown, and where it was set.

    Without a source it is looked up; an empty one means that there is no place to name.
    `unreadable` marks a whole file, whose keys would all seem to be missing.
    """

    key: str
    text: str
    shown: str | None = None
    source: str | None = None
    unreadable: bool = False


@dataclass(frozen=True)
class Setting:
    """One value of the command line: its key, its text, and the name the user typed."""

    key: str
    text: str
    source: str


@dataclass(frozen=True)
class Layer:
    """A tree of values, and the source of each dotted key in it."""

    tree: Tree
    sources: Mapping[str, str]


def parse_command_line(args: Sequence[str], flags: Iterable[str] = LAUNCH_FLAGS) -> list[Pair]:
    """Return `--a.b c`, `--a.b=c`, `-P a.b=c`, -v and bare flags, which mean true, as (name, text).

    A word that is no option, and an option without a value, stand there as typed, without a text.
    """
    pairs: list[Pair] = []
    words = list(args)
    while words:
        word = words.pop(0)
        word = "--verbose=true" if word == "-v" else word
        if word == "-P" and words and "=" in words[0]:  # as `mlflow run` would have it
            word = f"--{words.pop(0)}"
        name, equals, text = word.removeprefix("--").partition("=")
        name = name if "." in name else name.replace("-", "_")
        if not word.startswith("--") or not name:
            pairs.append((f"-P {words.pop(0)}" if word == "-P" and words else word, None))
        elif equals:
            pairs.append((name, text))
        elif words and not words[0].startswith("--") and words[0] not in ("-v", "-P"):
            pairs.append((name, words.pop(0)))
        elif name in flags:
            pairs.append((name, "true"))
        else:
            pairs.append((word, None))
    return pairs


def resolve(project: Path, overrides: Sequence[Pair], *, all_serve: bool = True) -> Resolved:
    """Return the parameters of a run: conf < recipe < command line, cast and checked.

    Args:
        project: The folder with MLproject, conf/ and recipes/.
        overrides: (name, text) pairs as `parse_command_line` returns them.
        all_serve: Whether one that does nothing beside another is a fault: it is a person's. Of a
            trial's values one may have been drawn that turns others off.

    Raises:
        ConfigError: If anything is wrong: all faults together, each with where it was set.
    """
    faults: list[Fault] = []
    aliases = read_aliases(project)
    settings = _read_settings(overrides, aliases, faults)
    tree, sources = _merge(_read_layers(project, settings, faults))
    values: Tree = {}
    if not any(fault.unreadable for fault in faults):
        values = _check(everything(), tree, "", faults)
    readable, flat = not faults, dict(_leaves(values))
    found = conflicts(flat.get, {key: sources.get(key, "") for key in flat if all_serve})
    faults += [Fault(key, text, _show(flat[key])) for key, text in found]
    options = {name: values.pop(name) for name in asdict(LaunchOptions()) if name in values}
    tuning = values.pop("tuning", {})
    resolved = Resolved(LaunchOptions(**options), values, sources, tuning)
    if faults:
        raise ConfigError(
            _lines(faults, sources, everything(), aliases.values()),
            _usable(resolved, [fault.key for fault in faults]) if readable else None,
        )
    return resolved


def resolve_usable(
    project: Path, overrides: Sequence[Pair], *, all_serve: bool = True
) -> tuple[Resolved, list[str]]:
    """Return the parameters of a run, less the sections whose values can't stand together, and why.

    The arguments are those of `resolve`.

    Raises:
        ConfigError: If a word or a file can't be read.
    """
    try:
        return resolve(project, overrides, all_serve=all_serve), []
    except ConfigError as err:
        if err.usable is None:
            raise
        return err.usable, err.faults


def read_section(section: Section, overrides: Sequence[Pair]) -> tuple[Tree, list[str]]:
    """Return the values of a command's own options, cast and checked, and every fault."""
    faults: list[Fault] = []
    same_names = {name: name for name in section.fields}
    layer = _command_layer(_read_settings(overrides, same_names, faults, NONE_GIVEN), section)
    values = _check(section, layer.tree, "", faults)
    return values, _lines(faults, layer.sources, section)


def _usable(resolved: Resolved, faulty: Sequence[str]) -> Resolved:
    """Return the parameters less every section that has a fault: data, registry or train.<part>."""
    values = {key: value for key, value in resolved.values.items() if key != "train"}
    parts: Tree = resolved.values.get("train", {})
    for key in faulty:
        section, _, rest = key.partition(".")
        values.pop(section, None)
        if section == "train":
            parts = {name: part for name, part in parts.items() if name != rest.split(".")[0]}
    return replace(resolved, values=values | {"train": parts})


def read_aliases(project: Path) -> dict[str, str]:
    """Return key -> short name, from conf/base/short_names.yml."""
    file = project / "conf" / "base" / "short_names.yml"
    lines = file.read_text(encoding="utf-8") if file.exists() else "{}"
    names: dict[str, str] = yaml.safe_load(lines)
    return {key: name for name, key in names.items()}


def _read_settings(
    overrides: Sequence[Pair],
    aliases: Mapping[str, str],
    faults: list[Fault],
    not_given: Sequence[str] = (),
) -> dict[str, Setting]:
    """Return the given values by key. A key given twice with two values is a fault."""
    settings: dict[str, Setting] = {}
    for name, text, source in _name_sources(overrides, aliases):
        if text is None:
            lacks = f"a value after it, as in {name}=VALUE"
            expected = lacks if re.match("--[^=]", name) else "an option, as in --NAME VALUE"
            faults.append(Fault(name, f"expected {expected}", source=""))
            continue
        if text.strip().lower() in not_given:
            continue
        given = Setting(name, text, source)
        for setting in [given] if name in aliases else _expand(given, faults):
            earlier = settings.setdefault(setting.key, setting)
            if earlier.text.lower() != setting.text.lower():
                reason = f"{earlier.source} sets it to {earlier.text}; give it once"
                faults.append(Fault(setting.key, reason, setting.text, setting.source))
    for key, setting in settings.items():
        for above in (other for other in settings if key.startswith(f"{other}.")):
            reason = f"{settings[above].source} sets all of {above}; give one of them"
            faults.append(Fault(key, reason, setting.text, setting.source))
    return settings


def _name_sources(
    overrides: Sequence[Pair], aliases: Mapping[str, str]
) -> Iterator[tuple[str, str | None, str]]:
    """Yield (key, text, what the user typed) for each value."""
    keys = {alias: key for key, alias in aliases.items()}
    mark = "-P " if "MLFLOW_RUN_ID" in os.environ else "--"  # `mlflow run` hands -P over as --
    for name, text in overrides:
        yield name if text is None else keys.get(name, name), text, f"{mark}{name}"


def _expand(setting: Setting, faults: list[Fault]) -> list[Setting]:
    """Return the settings one stands for: `precision` is two, any other itself."""
    if setting.key != "precision":
        return [setting]
    if setting.text not in PRECISIONS:
        reason = f"expected one of {', '.join(PRECISIONS)}"
        faults.append(Fault("precision", reason, setting.text, setting.source))
        return []
    both = zip(PRECISION_KEYS, PRECISIONS[setting.text], strict=True)
    return [Setting(key, text, setting.source) for key, text in both]


def _read_layers(
    project: Path, settings: Mapping[str, Setting], faults: list[Fault]
) -> list[Layer]:
    """Return what sets parameters, lowest first."""
    options = asdict(LaunchOptions())
    layers = [_layer(options, "default")]
    shared: Tree = {}
    for conf in (project / "conf" / "base", project / "conf" / "local"):
        shared |= _read_yaml(conf / "globals.yml", project, {}, faults)
    if root := settings.get("artifacts_root"):  # what is written below it moves along
        shared["artifacts_root"] = root.text
    for env in ("base", "local"):
        for path in sorted((project / "conf" / env / "parameters").glob("*.yml")):
            tree = _read_yaml(path, project, shared, faults)
            shown = path.name if env == "base" else path.relative_to(project).as_posix()
            layers.append(_layer(_without(tree, options, shown, faults), shown))
    recipe = settings["recipe"].text if "recipe" in settings else options["recipe"]
    layers.append(_read_recipe(project, recipe, shared, faults))
    layers.append(_command_layer(settings, everything()))
    return layers


def _read_recipe(project: Path, name: str, shared: Tree, faults: list[Fault]) -> Layer:
    recipes = {path.stem: path for path in sorted((project / "recipes").glob("*.yml"))}
    if name not in recipes:
        there = ", ".join(recipes) or "none"
        faults.append(Fault("recipe", f"no such recipe. There are: {there}", name))
        return Layer({}, {})
    shown = f"recipes/{name}.yml"
    tree = _read_yaml(recipes[name], project, shared, faults)
    elsewhere = [*asdict(LaunchOptions()), "artifacts_root"]
    return _layer(_without(tree, elsewhere, shown, faults), shown)


def _command_layer(settings: Mapping[str, Setting], section: Section) -> Layer:
    tree: Tree = {}
    sources: dict[str, str] = {}
    for setting in settings.values():
        *parents, name = setting.key.split(".")
        node = tree
        for parent in parents:
            below = cast(Tree, node[parent]) if isinstance(node.get(parent), dict) else Tree()
            node[parent] = node = below
        node[name] = value = cast_text(setting.text, kind_of(setting.key, section))
        sources |= _layer({setting.key: value}, setting.source).sources
    return Layer(tree, sources)


# What a file raises that is no YAML with keys; OmegaConf (2.3) asserts that it is no number.
NOT_YAML = (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AssertionError)


def _read_yaml(path: Path, project: Path, shared: Tree, faults: list[Fault]) -> Tree:
    """Return a file's mapping, read as Kedro reads it (1e-4 is a number, ${globals:...} works)."""
    if not path.exists():
        return {}
    try:
        return read_yaml(path, shared)
    except NOT_YAML as err:
        reason = f"can't be read as YAML with keys: {' '.join(str(err).split())}"
        faults.append(Fault(path.relative_to(project).as_posix(), reason, None, "", True))
        return {}


def read_yaml(path: Path, shared: Tree) -> Tree:
    """Return a file's mapping; a key that stands twice is an error.

    Raises:
        NOT_YAML: If it can't be read so.
    """
    # A plain reference, so that Kedro's own `globals` resolver, process-wide, stays its own.
    text = path.read_text(encoding="utf-8").replace("${globals:", "${globals.")
    created = OmegaConf.create(text)
    if not isinstance(created, DictConfig):
        raise TypeError("it is a list")
    node = OmegaConf.merge({"globals": shared}, created)
    tree = cast(Tree, OmegaConf.to_container(node, resolve=True))
    return {str(key): value for key, value in tree.items() if key != "globals"}


def _without(tree: Tree, elsewhere: Iterable[str], shown: str, faults: list[Fault]) -> Tree:
    """Return a file's mapping without the keys that are known, but not settable in it."""
    for key in [key for key in elsewhere if key in tree]:
        reason = f"can't be set in this file; it holds {', '.join(RECIPE_SECTIONS)} only"
        faults.append(Fault(key, reason, _show(tree[key]), shown))
    return {key: value for key, value in tree.items() if key not in elsewhere}


def _layer(tree: Tree, source: str) -> Layer:
    return Layer(tree, {key: source for key, _ in _leaves(tree)})


def _merge(layers: Sequence[Layer]) -> tuple[Tree, dict[str, str]]:
    """Return the layers laid over each other, and the source of each dotted key that remains."""
    tree: Tree = {}
    sources: dict[str, str] = {}
    for layer in layers:
        layer = _drop_sizes(_drop_pins(layer, tree), tree)
        tree = _overlay(tree, layer.tree)
        sources |= layer.sources
    return tree, {key: sources.get(key, "") for key, _ in _leaves(tree)}


def merge_trees(*trees: Tree) -> Tree:
    """Return trees merged as a run's layers are, lowest first."""
    return _merge([_layer(tree, "") for tree in trees])[0]


def _drop_pins(layer: Layer, below: Tree) -> Layer:
    """Return the layer with what belongs to the base cleared where it names another one."""
    now, before = dict(_leaves(layer.tree)), dict(_leaves(below))
    name = now.get(BASE)
    if name is None or name == before.get(BASE):
        return layer
    pins = tuple(f"train.model.{key}" for key in ("revision", "sha256", "prefix"))
    return _clear(layer, pins, before, layer.sources[BASE])


def _drop_sizes(layer: Layer, below: Tree) -> Layer:
    """Return the layer with the batch size cleared that follows from those it sets."""
    now, before = dict(_leaves(layer.tree)), dict(_leaves(below))
    given = {size: f"{PLACE}{size}" for size in SIZES}
    given = {size: key for size, key in given.items() if now.get(key) is not None}
    keys = [f"{PLACE}{size}" for size in sizes_that_follow(given.keys())]
    source = " and ".join(dict.fromkeys(layer.sources[key] for key in given.values()))
    return _clear(layer, keys, before, source)


def _clear(layer: Layer, keys: Iterable[str], before: Mapping[str, Any], source: str) -> Layer:
    """Return the layer with null for those of the keys that it does not set, and lower ones do."""
    now, tree = dict(_leaves(layer.tree)), layer.tree
    stale = [key for key in keys if key not in now and before.get(key) is not None]
    for key in stale:
        top, section, name = key.split(".")
        tree = _overlay(tree, {top: {section: {name: None}}})
    return Layer(tree, {**layer.sources, **dict.fromkeys(stale, source)})


def _overlay(below: Tree, above: Tree) -> Tree:
    """Return a deep merge: mappings merge, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _overlay(cast(Tree, old), cast(Tree, value)) if both else value
    return merged


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(cast(Tree, value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check(section: Section, tree: Tree, prefix: str, faults: list[Fault]) -> Tree:
    """Return the section's values, cast; whatever is faulty is reported and left out."""
    values: Tree = {}
    for name, value in tree.items():
        key, kind = f"{prefix}{name}", section.fields.get(name)
        if reason := refusal(key):
            faults.append(Fault(key, reason, _show(value)))
        elif kind is None:
            faults.append(Fault(key, UNKNOWN))
        elif isinstance(kind, Section) and isinstance(value, dict):
            values[name] = _check(kind, cast(Tree, value), f"{key}.", faults)
        else:
            try:
                values[name] = convert(value, kind)
            except ValueError:
                faults.append(Fault(key, f"expected {describe(kind)}", _show(value)))
    for name in sorted(section.required - tree.keys()):
        reason = f"missing; expected {describe(section.fields[name])}"
        faults.append(Fault(f"{prefix}{name}", reason, source=""))
    return values


def kind_of(key: str, section: Section) -> Any:
    """Return the type of a dotted key: Any below a free mapping, str where there is no such key."""
    kind: Any = section
    for name in key.split("."):
        if not isinstance(kind, Section):
            return Any
        kind = kind.fields.get(name, str)
    return kind


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = hide_secrets(text)
    if not text.isprintable():  # a fault is one line
        text = json.dumps(text, ensure_ascii=False)
    return text if 0 < len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…" if text else "''"


def source_of(key: str, sources: Mapping[str, str]) -> str:
    """Return where a key, or the first of those below it, was set; "" where that is unknown."""
    below = [text for name, text in sources.items() if name.startswith(f"{key}.")]
    return sources.get(key) or next(iter(below), "")


def _lines(
    faults: Iterable[Fault],
    sources: Mapping[str, str],
    section: Section,
    short_names: Iterable[str] = (),
) -> list[str]:
    """Return each fault as one line: key = value (source): what is wrong, what to do."""
    lines: list[str] = []
    for fault in faults:
        source = fault.source
        if source is None:
            source = source_of(fault.key, sources)
        shown = "" if fault.shown is None else f" = {fault.shown}"
        place = f" ({source})" if source else ""
        help = suggest(fault.key, section, short_names) if fault.text == UNKNOWN else ""
        line = f"{fault.key}{shown}{place}: {fault.text}.{help}"
        lines.append(line if line.isprintable() else json.dumps(line, ensure_ascii=False)[1:-1])
    return lines


def suggest(key: str, section: Section, short_names: Iterable[str] = ()) -> str:
    """Return a hint at the known name that a wrong one stands for.

    One of the same spelling elsewhere, else the nearest beside it, else the nearest anywhere.
    """
    parent, _, name = key.rpartition(".")
    known = list(keys_of(section))
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    if not parent:
        beside |= {short: short for short in short_names}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for pool, cutoff in ((anywhere, 1), (beside, 0.6), (anywhere, 0.75)):
        if near := nearest(name, pool, cutoff):
            return f" Did you mean {pool[near]}?"
    return f" {hint(key, known)}" if len(known) <= MOST_NAMED else " --help names those there are."


def keys_of(section: Section, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of everything that may be set in a section."""
    for name, kind in section.fields.items():
        if refusal(f"{prefix}{name}") is None:
            yield f"{prefix}{name}"
        if isinstance(kind, Section):
            yield from keys_of(kind, f"{prefix}{name}.")
