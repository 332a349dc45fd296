"""The space of a search: which keys, between which values, under which condition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from account_tax.faults import hint
from account_tax.parameters.config import (
    NO_PART,
    NOT_YAML,
    Pair,
    Resolved,
    keys_of,
    kind_of,
    read_yaml,
    suggest,
)
from account_tax.parameters.kinds import Section, cast_text, convert, describe, plain_types
from account_tax.parameters.schema import everything, refusal

if TYPE_CHECKING:
    from optuna.trial import Trial

SEARCHED = "train."  # before the keys that may be searched: the data is prepared once
FIELDS = {
    "float": ("low", "high", "log", "step", "if"),
    "int": ("low", "high", "log", "step", "if"),
    "categorical": ("choices", "if"),
}
Value = bool | int | float | str
Values = dict[str, Value]


@dataclass(frozen=True)
class Range:
    """What one key may be: numbers from low to high, or one of some choices.

    Attributes:
        key: Its dotted name.
        type: float, int or categorical.
        low: The smallest number.
        high: The largest.
        log: Whether the numbers' logarithms are spread evenly, not they themselves.
        step: Between two numbers; None: any.
        choices: Of a categorical; a list stands as it is typed, `[query,value]`.
        condition: Another key and the value it must have for this one to be searched.
    """

    key: str
    type: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Value, ...] = ()
    condition: tuple[str, Value] | None = None

    def holds(self, value: Any) -> bool:
        """Return whether a value is one that the search may propose."""
        if self.type == "categorical":
            return any(value == each and type(value) is type(each) for each in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and _is_reached(value - self.low, self.step)

    def suggest(self, trial: Trial) -> Value:
        """Return the value that Optuna proposes."""
        if self.type == "categorical":
            return cast("Value", trial.suggest_categorical(self.key, self.choices))
        if self.type == "int":
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.key, low, high, step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def in_words(self) -> str:
        """Return it as a person reads it."""
        if self.type == "categorical":
            said = " | ".join(map(typed, self.choices))
        else:
            said = f"{self.type} from {self.low:g} to {self.high:g}"
            said += ", logarithmic" * self.log + (f", step {self.step:g}" if self.step else "")
        if self.condition:
            said += f", if {self.condition[0]} = {typed(self.condition[1])}"
        return said


@dataclass(frozen=True)
class Space:
    """All ranges, those without a condition first, and the recipe's values in them."""

    ranges: tuple[Range, ...]
    base: Values

    def active(self, values: Mapping[str, Value]) -> list[Range]:
        """Return the ranges whose condition these values meet."""
        return [
            each
            for each in self.ranges
            if each.condition is None or values.get(each.condition[0]) == each.condition[1]
        ]

    def suggest(self, trial: Trial) -> Values:
        """Return the values that Optuna proposes for a trial."""
        values: Values = {}
        for each in self.ranges:
            if each in self.active(values):
                values[each.key] = each.suggest(trial)
        return values

    def start(self) -> Values:
        """Return the recipe's own values, of what is searched with them."""
        return {each.key: self.base[each.key] for each in self.active(self.base)}


def typed(value: Any) -> str:
    """Return a value as it is typed on the command line, every digit of it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def shown(value: Any) -> str:
    """Return a value as a person reads it: a number's first four digits."""
    return f"{value:.4g}" if isinstance(value, float) else typed(value)


def plain(value: Any) -> Any:
    """Return a value as Optuna takes it: a list as it is typed."""
    return typed(value) if isinstance(value, list) or value is None else value


def override(pairs: Sequence[Pair], values: Mapping[str, Value]) -> list[Pair]:
    """Return pairs by dotted key with a trial's values in the place of their own."""
    kept = [pair for pair in pairs if pair[0] not in values]
    return [*kept, *((key, typed(value)) for key, value in values.items())]


# --- reading --------------------------------------------------------------------------------------


def read_space(project: Path, name: str, resolved: Resolved) -> tuple[Space, list[str]]:
    """Return the space of a file and every fault in it.

    Args:
        project: The project's root; the file's name may be relative to it.
        name: The file.
        resolved: The parameters it starts from; sections with a fault may be missing.
    """
    try:
        tree = read_yaml(project / name, {})
    except OSError:
        there = sorted((project / "recipes" / "spaces").glob("*.yml"))
        known = [path.relative_to(project).as_posix() for path in there]
        given = f"tuning.space = {name} ({resolved.sources['tuning.space']})"
        return Space((), {}), [f"{given}: no such file. {hint(name, known)}"]
    except NOT_YAML as err:
        why = " ".join(str(err).split())
        return Space((), {}), [f"{name}: can't be read as YAML with keys: {why}."]
    if not tree:
        return Space((), {}), [f"{name}: expected dotted keys, each with type, low and high."]
    faults, ranges = list[str](), list[Range]()
    for key, spec in tree.items():
        wrong = list(_key_faults(str(key))) or list(_spec_faults(str(key), spec))
        if not wrong:
            made = _range(key, spec)
            wrong, ranges = list(_schema_faults(made)), [*ranges, made]
        faults += wrong
    faults += _condition_faults(ranges, tree)
    flat = resolved.flat()
    base = {each.key: plain(flat.get(each.key)) for each in ranges}
    space = Space(tuple(sorted(ranges, key=lambda each: each.condition is not None)), base)
    if not faults and "training" in resolved.values.get("train", {}):
        faults = list(_start_faults(space, resolved.sources))
    return space, [f"{fault} ({name})" for fault in faults]


def _key_faults(key: str) -> Iterator[str]:
    """Say why a key can't be searched."""
    section = everything()
    kind = kind_of(key, section)
    known = key in {*keys_of(section)} or kind is Any
    if reason := refusal(key):
        yield f"{key}: {reason}"
    elif not known:
        yield f"{key}: unknown parameter.{suggest(key, section)}"
    elif not key.startswith(SEARCHED) or key in NO_PART or isinstance(kind, Section):
        yield f"{key}: not searched; expected one value's key below train"


def _spec_faults(key: str, spec: Any) -> Iterator[str]:
    """Say what is wrong with a key's range in itself."""
    if not isinstance(spec, dict) or "type" not in spec:
        yield f"{key}: expected a mapping with type, and low and high, or choices"
        return
    if (kind := typed(spec["type"])) not in FIELDS:
        yield f"{key}.type = {kind}: unknown. {hint(kind, FIELDS)}"
        return
    known = FIELDS[kind]
    for name in spec.keys() - {"type", *known}:
        yield f"{key}.{name}: unknown. {hint(str(name), known)}"
    if spec["type"] == "categorical":
        if not isinstance(spec.get("choices"), list) or not spec["choices"]:
            yield f"{key}.choices = {typed(spec.get('choices'))}: expected a list of values"
        elif len(set(map(repr, spec["choices"]))) < max(2, len(spec["choices"])):
            yield f"{key}.choices = {typed(spec['choices'])}: expected several values, each once"
        return
    numbers, kind = {}, int if spec["type"] == "int" else float
    for name in ("low", "high", *(["step"] if spec.get("step") is not None else [])):
        try:
            numbers[name] = convert(spec.get(name), kind)
        except ValueError:
            yield f"{key}.{name} = {typed(spec.get(name))}: expected {describe(kind)}"
    if len(numbers) == 2 + (spec.get("step") is not None):
        yield from _number_faults(key, numbers, spec.get("log"))


def _is_reached(distance: float, step: float | None) -> bool:
    """Return whether whole steps make a distance; any will do where there is no step."""
    steps = distance / step if step else 0.0
    return math.isclose(steps, round(steps), abs_tol=1e-9)


def _number_faults(key: str, numbers: Mapping[str, float], log: Any) -> Iterator[str]:
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if low >= high:
        yield f"{key}: an empty range, low = {low:g} is not below high = {high:g}"
    if log not in (None, True, False):
        yield f"{key}.log = {typed(log)}: expected true or false"
    if log and low <= 0:
        yield f"{key}.low = {low:g}: expected a number above 0, as log is true"
    if step is not None and (log or step <= 0):
        yield f"{key}.step = {step:g}: expected a number above 0, and log false"
    elif step and low < high and not _is_reached(high - low, step):
        reached = low + (high - low) // step * step
        yield f"{key}.high = {high:g}: no step of {step:g} from {low:g}; the last is {reached:g}"


def _range(key: str, spec: dict[str, Any]) -> Range:
    pair = spec.get("if") if _is_pair(spec) else None
    condition = next(((str(other), plain(value)) for other, value in (pair or {}).items()), None)
    if spec["type"] == "categorical":
        kind, choices = kind_of(key, everything()), list[Any]()
        for each in spec["choices"]:
            try:
                choices.append(plain(convert(each, kind)))
            except ValueError:  # said with the other faults
                choices.append(plain(each))
        return Range(key, "categorical", choices=tuple(choices), condition=condition)
    cast, step = int if spec["type"] == "int" else float, spec.get("step")
    low, high = cast(spec["low"]), cast(spec["high"])
    step = None if step is None else cast(step)
    return Range(key, spec["type"], low, high, bool(spec.get("log")), step, (), condition)


def _is_pair(spec: Mapping[str, Any]) -> bool:
    given = spec.get("if")
    return given is None or (isinstance(given, dict) and len(given) == 1)


def _schema_faults(made: Range) -> Iterator[str]:
    """Say which values the key itself would refuse."""
    kind = kind_of(made.key, everything())
    if made.type == "float" and not {float, Any} & plain_types(kind):
        yield f"{made.key}.type = float: the key is no such number; it is {describe(kind)}"
        return
    pairs = [("choices", each) for each in made.choices]
    for name, value in pairs or [("low", made.low), ("high", made.high)]:
        try:
            convert(cast_text(value, kind) if isinstance(value, str) else value, kind)
        except ValueError:
            yield f"{made.key}.{name} = {typed(value)}: expected {describe(kind)}"


def _condition_faults(ranges: Sequence[Range], tree: Mapping[Any, Any]) -> Iterator[str]:
    """Say which conditions can never be asked, or never be met."""
    by_key = {each.key: each for each in ranges}
    for key, spec in tree.items():
        if isinstance(spec, dict) and not _is_pair(spec):
            yield f"{key}.if: expected one key and its value, {{KEY: VALUE}}"
    for each in ranges:
        if each.condition is None:
            continue
        other, value = each.condition
        if other not in tree:
            yield f"{each.key}.if: {other} is not in the space. {hint(other, map(str, tree))}"
        elif other in by_key and by_key[other].condition:
            yield f"{each.key}.if: {other} has a condition itself; one level is possible"
        elif other in by_key and not by_key[other].holds(value):
            yield f"{each.key}.if: {other} is never {typed(value)}"


def _start_faults(space: Space, sources: Mapping[str, str]) -> Iterator[str]:
    """Say which of the recipe's own values, the first trial, lie outside."""
    for each in space.active(space.base):
        value = space.base[each.key]
        if not each.holds(value):
            where = sources.get(each.key) or "training.yml"
            yield (
                f"{each.key} = {typed(value)} ({where}): the first trial, outside its range, "
                f"{each.in_words()}. Give it one inside (--{each.key}=VALUE)"
            )
