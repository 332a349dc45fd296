# pyright: strict
"""A command's options: declared once, as the fields of a dataclass, and read from its words."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast, get_args, get_type_hints

from account_tax.errors import Refused
from account_tax.faults import tell

from .config import ConfigError, Pair, parse_command_line, read_section, resolve
from .kinds import Help, Section, convert, is_flag
from .schema import LaunchOptions, Reference, RegisteredName

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Option:
    """One option: what it is called, what it may be, and what it is for.

    `default` is its text, or empty; an option that is not `listed` is completed, but not in --help;
    `values` are completed beside those that its kind names.
    """

    name: str
    kind: Any
    help: str
    default: str = ""
    required: bool = False
    listed: bool = True
    values: Sequence[str] = ()


def options_of(declared: type[Any]) -> list[Option]:
    """Return the options that a dataclass declares: its fields that have a Help."""
    hints, options = get_type_hints(declared, include_extras=True), list[Option]()
    for each in fields(declared):
        kind, made = hints[each.name], each.default_factory
        default: Any = each.default if made is MISSING else made()
        for said in [extra.text for extra in get_args(kind)[1:] if isinstance(extra, Help)]:
            required = default is MISSING
            shown = "" if required else text_of(default)
            options.append(Option(each.name, kind, said, shown, required))
    return options


def text_of(value: Any) -> str:
    """Return a value as it is typed; nothing for None and an empty list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, cast(list[Any], value)))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# What every command has beside its own, seen to before it begins.
VERBOSE = next(each for each in options_of(LaunchOptions) if each.name == "verbose")


def asks_for_all(words: Sequence[str]) -> bool:
    """Return whether a command's words say to show what libraries say; a faulty one says no."""
    with suppress(ValueError):
        return convert(dict(parse_command_line(words)).get(VERBOSE.name), bool)
    return False


def read_options(
    declared: type[Asked], words: Sequence[str], beyond: Callable[[str], bool] = lambda _: False
) -> tuple[Asked, list[Pair]]:
    """Return what a command's words ask for, and the pairs that are not its own.

    Args:
        declared: The dataclass with the options.
        words: Of the command line, after the command's name.
        beyond: Which undeclared names are somebody else's; any other is a fault.

    Raises:
        Refused: With every fault there is.
    """
    values, rest, faults = read_words(declared, words, beyond)
    if faults:
        raise Refused(tell(faults, "in the options"))
    return declared(**values), rest


def read_words(
    declared: type[Any], words: Sequence[str], beyond: Callable[[str], bool]
) -> tuple[dict[str, Any], list[Pair], list[str]]:
    """Return the values without a fault, the pairs of somebody else, and the faults."""
    options = {each.name: each for each in [*options_of(declared), VERBOSE]}
    flags = [name for name, each in options.items() if is_flag(each.kind)]
    pairs = parse_command_line(words, flags)
    rest = [pair for pair in pairs if pair[0] not in options and beyond(pair[0])]
    section = Section(
        {name: each.kind for name, each in options.items()},
        frozenset(name for name, each in options.items() if each.required),
    )
    values, faults = read_section(section, [pair for pair in pairs if pair not in rest])
    values.pop(VERBOSE.name, None)
    return values, rest, faults


UNAPPROVED = "Also a version that is rejected, retired or expired; recorded."


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which registered model a command is about; `registry` has registry.yml's parameters."""

    registered_model_name: Annotated[RegisteredName | None, Help("Else registry.name.")] = None
    registry: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """The registered model."""
        return self.registry["name"]

    @classmethod
    def read(
        cls,
        project: Path,
        words: Sequence[str],
        faults_of: Callable[[Self], Iterable[str]] = lambda _: (),
        beyond: Callable[[str], bool] = lambda _: False,
    ) -> Self:
        """Return what a command's words ask for, with the project's parameters.

        Args:
            project: The project's root.
            words: Of the command line, after the command's name.
            faults_of: Says what is wrong with values that each are what they may be.
            beyond: Which undeclared names are the project's parameters.

        Raises:
            Refused: With every fault there is.
        """
        values, pairs, faults = read_words(cls, words, beyond)
        name, registry = values.get("registered_model_name"), dict[str, Any]()
        try:
            above = [*pairs, *([("registry.name", name)] if name else [])]
            registry = resolve(project, above).values["registry"]
        except ConfigError as err:
            faults += err.faults
        if all(each.name in values for each in options_of(cls) if each.required):
            asked = cls(**values, registry=registry)
            faults += faults_of(asked)
            if not faults:
                return asked
        raise Refused(tell(faults, "in the options"))


@dataclass(frozen=True, kw_only=True)
class VersionOptions(ModelOptions):
    """Which registered version a command is about."""

    version: Annotated[Reference | None, Help("A number or an alias; else registry.alias.")] = None

    @property
    def reference(self) -> str:
        """The version's number or alias."""
        return self.version or self.registry["alias"]
