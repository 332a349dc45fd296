"""How a command shows its options: in --help, and where a shell completes its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import click
import yaml
from click.shell_completion import CompletionItem

from .config import (
    PRECISION_KEYS,
    PRECISIONS,
    ConfigError,
    keys_of,
    kind_of,
    read_aliases,
    resolve,
)
from .kinds import Section, choices, describe, is_flag, plain_types
from .options import Option, options_of, text_of
from .schema import LaunchOptions, everything

METAVARS = {int: "INTEGER", float: "NUMBER", bool: "true|false", list: "A,B,..."}
PRECISION = "Of the weights in training; sets train.training.bf16 and fp16."


class WordsCommand(click.Command):
    """A command that reads its words itself; click shows and completes its options."""

    def __init__(self, *args: Any, options: Callable[[], list[Option]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._options = options

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Hand all words to the command, unless one asks for help."""
        if {*self.get_help_option_names(ctx)} & {*args} and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        ctx.params = {"words": tuple(args)}
        return []

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence, whole: click ends one at "`mlflow run ."."""
        return " ".join((self.help or "").split("\n\n")[0].split())

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options, made when somebody asks: most calls never do."""
        return [*map(_click_option, self._options()), *super().get_params(ctx)]


class _Unlisted(click.Option):
    """An option that is completed, but not in --help."""

    def get_help_record(self, ctx: click.Context) -> None:
        """Return nothing to show."""


def _click_option(option: Option) -> click.Option:
    known = option.values or [text_of(value) for value in choices(option.kind)]
    known = [*known, *(["true", "false"] if is_flag(option.kind) else [])]

    def complete(_: Any, __: Any, begun: str) -> list[CompletionItem]:
        return [CompletionItem(value) for value in known if value.startswith(begun)]

    note = "required" if option.required else option.default and f"default: {option.default}"
    return (click.Option if option.listed else _Unlisted)(
        [option.name.replace(".", "__"), f"--{option.name}"],
        metavar=_metavar(option.kind),
        type=click.Path() if Path in plain_types(option.kind) else None,
        help=" ".join(filter(None, [option.help, _limits(option.kind), note and f"[{note}]"])),
        shell_complete=complete if known else None,
    )


def _metavar(kind: Any) -> str:
    types = {METAVARS.get(each, "TEXT") for each in plain_types(kind) if each is not NoneType}
    parts = [*map(text_of, choices(kind)), *sorted(types)]
    shown = "|".join(parts)
    return f"[{shown}]" if "|" in shown else shown


def _limits(kind: Any) -> str:
    """Return a number's limits as a sentence; of other types the metavar says enough."""
    words = describe(kind)
    return f"{words[0].upper()}{words[1:]}." if plain_types(kind) & {int, float} else ""


# --- kedro train ----------------------------------------------------------------------------------


def train_options(project: Path, search: bool = False) -> list[Option]:
    """Return what `kedro train`, or `kedro tune`, takes: short names, the launcher's, dotted."""
    launch = {each.name: each for each in options_of(LaunchOptions)}
    recipes = [file.stem for file in sorted((project / "recipes").glob("*.yml"))]
    launch["recipe"] = replace(launch["recipe"], values=recipes)
    said, section, set_to = _comments(project), everything(), _defaults(project)
    launch["precision"] = Option("precision", Literal[*PRECISIONS], PRECISION, _precision(set_to))
    keys = {key: kind_of(key, section) for key in keys_of(section) if key not in launch}
    kinds = {key: kind for key, kind in keys.items() if not isinstance(kind, Section)}
    dotted = {key: Option(key, kind, said.get(key, "")) for key, kind in kinds.items()}
    short = [
        replace(dotted[key], name=name, help=f"{key}: {said[key]}.", default=set_to.get(key, ""))
        for key, name in read_aliases(project).items()
        if search or not key.startswith("tuning.")
    ]
    return [*short, *launch.values(), *(replace(each, listed=False) for each in dotted.values())]


def _defaults(project: Path) -> dict[str, str]:
    """Return each key's value where nothing is given, and the file that sets it."""
    try:
        resolved = resolve(project, [])
    except ConfigError:  # help is needed most where something is wrong
        return {}
    texts = {key: text_of(value) for key, value in resolved.flat().items()}
    return {key: f"{text}, {resolved.sources[key]}" for key, text in texts.items() if text}


def _precision(set_to: Mapping[str, str]) -> str:
    """Return the default of the one word for two keys."""
    pairs = [set_to.get(key, "").partition(", ") for key in PRECISION_KEYS]
    texts, sources = tuple(pair[0] for pair in pairs), {pair[2]: None for pair in pairs}
    words = [word for word, both in PRECISIONS.items() if both == texts]
    return "".join(f"{word}, {' and '.join(sources)}" for word in words)


def _comments(project: Path) -> dict[str, str]:
    """Return the comment beside each key of conf/base/parameters/."""
    found: dict[str, str] = {}
    for file in (project / "conf" / "base" / "parameters").glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for key, line in _keys_with_lines(yaml.compose(text), ""):
            found[key] = lines[line].partition(" # ")[2].strip()
    return found


def _keys_with_lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line
            yield from _keys_with_lines(value, f"{prefix}{key.value}.")
