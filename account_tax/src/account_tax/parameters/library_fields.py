# pyright: strict
"""Names and rough types of the libraries' own options, read from their source, never imported.

The launcher checks every option before a rank starts, and importing torch for the field names alone
would cost it seconds. The source of a dataclass says the same in milliseconds.
"""

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, cast

SCALARS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "Path": str}
Enums = Mapping[str, tuple[str, ...]]


@cache
def class_fields(package: str, module: str, class_name: str) -> dict[str, Any]:
    """Return a class's annotated fields as name to type; enums become their allowed texts.

    Deprecated fields are left out, and a pydantic alias stands for its field's name.
    """
    enums = _enums(package, module) | _enums(package, "trainer_utils.py")
    for node in _tree(package, module).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return dict(_fields(node, enums))
    raise LookupError(f"{package}/{module} has no class {class_name}")


def _fields(owner: ast.ClassDef, enums: Enums) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = []
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            options = _field_options(node.value)
            if "deprecated" not in options.get("json_schema_extra", {}):
                name = options.get("alias", node.target.id)
                fields.append((name, to_type(node.annotation, enums)))
    return fields


def _field_options(value: ast.expr | None) -> dict[str, Any]:
    """Return the literal keyword arguments of a `field(...)` or `Field(...)` call."""
    options: dict[str, Any] = {}
    for keyword in value.keywords if isinstance(value, ast.Call) else []:
        if keyword.arg in ("alias", "json_schema_extra"):
            options[keyword.arg] = _literal_or_source(keyword.value)
    return options


def _literal_or_source(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # a lambda inside json_schema_extra
        return ast.unparse(node)


def to_type(node: ast.expr, enums: Enums) -> Any:
    """Return the type an annotation stands for; a class of the library is set by a mapping."""
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.Name(id=name) if name in enums:
            return _literal(enums[name])
        case ast.Name(id=name):
            return SCALARS.get(name) or {"list": list[Any], "Any": Any}.get(name, dict[str, Any])
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([left, right], enums)
        case ast.Subscript(value=ast.Name(id=outer), slice=inner):
            return _subscript(outer, inner, enums)
        case _:
            return Any


def _subscript(outer: str, inner: ast.expr, enums: Enums) -> Any:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if outer == "Optional":
        return _union([inner, ast.Constant(value=None)], enums)
    if outer == "Union":
        return _union(parts, enums)
    if outer == "Literal":
        return _literal(tuple(ast.literal_eval(part) for part in parts))
    if outer in ("list", "List"):
        item: Any = to_type(inner, enums)
        return list[item]
    return dict[str, Any] if outer in ("dict", "Dict") else Any


def _union(parts: list[ast.expr], enums: Enums) -> Any:
    # `SchedulerType | str` means one of the scheduler's names, however it is written.
    narrowed = any(isinstance(part, ast.Name) and part.id in enums for part in parts)
    kept = [p for p in parts if not (narrowed and isinstance(p, ast.Name) and p.id == "str")]
    return Union[tuple(to_type(part, enums) for part in kept)]  # noqa: UP007 - made at run time


def _literal(values: tuple[Any, ...]) -> Any:
    return cast(Any, Literal)[values]


@cache
def _enums(package: str, module: str) -> dict[str, tuple[str, ...]]:
    """Return the text enums a module defines, as name to their values."""
    if not _path(package, module).exists():
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for node in _tree(package, module).body:
        bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and any(base.endswith("Enum") for base in bases):
            values = [s.value for s in node.body if isinstance(s, ast.Assign)]
            texts = [v.value for v in values if isinstance(v, ast.Constant)]
            if texts and all(isinstance(text, str) for text in texts):
                found[node.name] = tuple(str(text) for text in texts)
    return found


@cache
def _tree(package: str, module: str) -> ast.Module:
    return ast.parse(_path(package, module).read_text(encoding="utf-8"))


def _path(package: str, module: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds a top-level package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: it is one of this project's needs")
    return Path(spec.submodule_search_locations[0]) / module
