"""What is imported is declared, what is declared is used, and docs/dependencies.md lists it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# `mlflow` is three distributions that share one module.
SHARED = {"mlflow-skinny": "mlflow", "mlflow-tracing": "mlflow"}


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


DIRECT = names(PROJECT["project"]["dependencies"])
TEST = names(PROJECT["project"]["optional-dependencies"]["test"])


def imported_modules(folder: Path) -> set[str]:
    modules: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    top = {module.partition(".")[0] for module in modules}
    return top - set(sys.stdlib_module_names) - {"account_tax"}


def imported_distributions() -> set[str]:
    by_module = packages_distributions()
    found = set()
    for module in imported_modules(ROOT / "account_tax" / "src"):
        for name in by_module.get(module, [module]):
            found.add(SHARED.get(canonicalize_name(name), canonicalize_name(name)))
    return found


def listed(title: str) -> dict[str, str]:
    """Return name -> purpose of a table in docs/dependencies.md."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|", section, re.MULTILINE)
    return dict(rows[1:])  # the first is the header


def test_whatever_is_imported_is_declared():
    assert imported_distributions() - DIRECT == set()


def test_whatever_is_declared_is_imported_or_says_why_not():
    unexplained = {
        name for name, purpose in listed("Direct").items() if not purpose.startswith("not imported")
    }
    assert unexplained == imported_distributions()


def test_each_direct_dependency_has_a_line_and_each_line_a_dependency():
    assert listed("Direct").keys() == DIRECT
    assert listed("For the tests").keys() == TEST


def test_the_locks_tools_have_lines():
    tools = names(PROJECT["dependency-groups"]["lock"])
    assert listed("For the lock, outside the environment").keys() == tools | {"uv"}
