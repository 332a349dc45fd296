# pyright: strict
"""A parameter's type: read text as it, convert a value to it, say it in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter

NULLS = ("null", "none")
MOST_CHOICES = 12  # a message names no more
PLAIN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    NoneType: "null",
}


@dataclass(frozen=True)
class Words:
    """How a message names an annotated type: "expected <text>."."""

    text: str


@dataclass(frozen=True)
class Help:
    """What an option of this type is for, in one sentence."""

    text: str


@dataclass(frozen=True)
class Section:
    """A mapping with known keys: for each a type, or a Section below it."""

    fields: Mapping[str, Any]
    required: frozenset[str] = field(default_factory=frozenset[str])
    nullable: bool = False


def cast_text(text: str, kind: Any) -> Any:
    """Return what text typed on the command line means for a type.

    Numbers and flags stay text here: `convert` reads those.
    """
    if isinstance(kind, Section):
        return None if text.lower() in NULLS and kind.nullable else text
    types = plain_types(kind)
    if text.lower() in NULLS and NoneType in types:
        return None
    for choice in choices(kind):
        if text == str(choice):
            return choice
    mapping = dict in types and text[:1] == "{"
    if list in types and not mapping and ("," in text or text[:1] == "[" or str not in types):
        items = text.strip("[] ")
        return [item.strip(" '\"") for item in items.split(",")] if items else []
    return _yaml_value(text) if Any in types or mapping else text


def convert(value: Any, kind: Any) -> Any:
    """Return a value as its type; raise ValueError where it does not fit."""
    if isinstance(kind, Section):
        if value is None and kind.nullable:
            return None
        raise ValueError("not a mapping")
    types: set[Any] = {*plain_types(kind), *map(type, choices(kind))}
    if isinstance(value, bool) and types & {int, float} and bool not in types:
        raise ValueError("pydantic would read true as 1")
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    return adapter.validate_python(value)  # its ValidationError is a ValueError


def describe(kind: Any) -> str:
    """Return a type in a person's words."""
    if isinstance(kind, Section):
        keys = f"keys below it ({', '.join(sorted(kind.required))})"
        return f"{keys}, or null" if kind.nullable else keys
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        own = [extra.text for extra in args[1:] if isinstance(extra, Words)]
        return own[0] if own else describe(args[0])
    if origin in (Union, UnionType):
        return ", or ".join(describe(arg) for arg in args)
    if origin is Literal:
        some = [*map(str, args[:MOST_CHOICES]), *(["..."] if len(args) > MOST_CHOICES else [])]
        return ("one of " if len(args) > 1 else "") + ", ".join(some)
    if origin is list:
        return f"a list, each {describe(args[0])}"
    if origin is dict and args[1] is not Any:
        return f"a mapping of names, each to {describe(args[1])}"
    return PLAIN_WORDS.get(origin or kind, "a value")


def _yaml_value(text: str) -> Any:
    try:
        node = OmegaConf.create(f"value: {text}")
        return cast(dict[str, Any], OmegaConf.to_container(node))["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        return text


def _branches(kind: Any) -> list[Any]:
    """Return the members of a union, without their Annotated wrapping."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _branches(args[0])
    if origin in (Union, UnionType):
        return [branch for arg in args for branch in _branches(arg)]
    return [kind]


def choices(kind: Any) -> list[Any]:
    """Return the values a type names."""
    literals = [branch for branch in _branches(kind) if get_origin(branch) is Literal]
    return [choice for literal in literals for choice in get_args(literal)]


def is_flag(kind: Any) -> bool:
    """Return whether a type is true or false and nothing else."""
    return plain_types(kind) == {bool}


def plain_types(kind: Any) -> set[Any]:
    """Return the types a type is made of, beside the values it names."""
    plain = [branch for branch in _branches(kind) if get_origin(branch) is not Literal]
    return {get_origin(branch) or branch for branch in plain}
