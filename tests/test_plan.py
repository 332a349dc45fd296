"""The package keeps its plan: what may import what, how large things are, whose names it uses."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.test_docs import blocks, tree_paths

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "account_tax/src/account_tax"
TESTS = REPOSITORY / "tests"
DESIGN = (REPOSITORY / "docs/design.md").read_text("utf-8")
DEPENDENCIES = (REPOSITORY / "docs/dependencies.md").read_text("utf-8")
MOST_LINES = 40
MOST_LOOSE_MODULES = 10
KNOW_KEDRO = {"cli.py", "datasets.py", "hooks.py", "pipeline_registry.py", "settings.py"}
OF_PYTHON = {"_asdict", "_exit", "_replace"}  # public, whatever they look like
# Tests of the whole project.
WHOLE = {"bases", "dependencies", "docs", "image", "mlproject", "plan", "recipes", "style"}


# --- what there is --------------------------------------------------------------------------------


def module_name(file, package=PACKAGE):
    """Return the dotted name of a file of the package; a folder's `__init__` has the folder's."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_package(package=PACKAGE):
    """Return the file and the syntax tree of each module, by its dotted name."""
    return {
        module_name(file, package): (file, ast.parse(file.read_text("utf-8")))
        for file in sorted(package.rglob("*.py"))
    }


def imported(name, file, tree):
    """Yield the dotted names that a module imports, be it inside a function."""
    folder = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def named(tree):
    """Yield the dotted names that stand in strings, for importlib, `python -m` or an entry point.

    In a call of importlib one that is put together, or relative, could be any: it is `?`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\baccount_tax(?:\.\w+)+", node.value)
        elif (
            isinstance(node, ast.Call)
            and re.search("import_+(module)?$", ast.unparse(node.func))
            and not re.fullmatch(r"f?'\w[^']*'", ast.unparse(node.args[0]))
        ):
            yield "account_tax.?"


def find_arrows(modules):
    """Return the modules of the project that each one of them imports or names in a string."""
    arrows = {}
    for name, (file, tree) in modules.items():
        full = {*imported(name, file, tree), *named(tree)}
        targets = {each if each in modules else each.rpartition(".")[0] for each in full}
        arrows[name] = (targets & modules.keys()) - {name, "account_tax"}
        arrows[name] |= full & {"account_tax.?"}
    return arrows


def read_layers(text):
    """Return the list of layers of docs/design.md, the innermost first."""
    (body,) = blocks(text, "layers")
    return [line.split() for line in body.splitlines()]


def room_of(name, rooms):
    """Return the room that a module belongs to, or None."""
    path = name.replace(".", "/").partition("/")[2]
    for room in rooms:
        if path == room.removesuffix(".py") or (room[-1] == "/" and f"{path}/".startswith(room)):
            return room
    return None


def against_the_layers(arrows, layers):
    """Return the imports that lead outward, or to a neighbour of the same layer."""
    level = {room: number for number, rooms in enumerate(layers) for room in rooms}
    return [
        f"{name} imports {target}"
        for name, targets in arrows.items()
        for target in targets
        if (here := room_of(name, level)) != (there := room_of(target, level))
        and not (here and there and level[there] < level[here])
    ]


def find_circle(arrows):
    """Return the modules of a circle, or an empty list."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as err:
        return err.args[1]
    return []


MODULES = read_package()
ARROWS = find_arrows(MODULES)
LAYERS = read_layers(DESIGN)
ROOMS = [room for layer in LAYERS for room in layer]


# --- directions -----------------------------------------------------------------------------------


def test_each_module_has_one_room():
    assert len(ROOMS) == len(set(ROOMS))
    assert [room for room in ROOMS if not (PACKAGE / room).exists()] == []
    outside = {name for name in MODULES if not room_of(name, ROOMS)}
    assert {name for name in outside if MODULES[name][0].name != "__init__.py"} == set()
    assert {name: ARROWS[name] for name in outside if ARROWS[name]} == {}


def test_imports_point_inward():
    assert against_the_layers(ARROWS, LAYERS) == []


def test_modules_import_in_no_circle():
    assert find_circle(ARROWS) == []


def test_rooms_import_in_no_circle():
    between = {room: set() for room in ROOMS}
    for name, targets in ARROWS.items():
        if room := room_of(name, ROOMS):
            between[room] |= {room_of(target, ROOMS) for target in targets} - {room}
    assert find_circle(between) == []


@pytest.mark.parametrize("name", ["model.classifier", "registry.verify"])
def test_what_runs_without_the_project_imports_nothing_of_it(name):
    assert ARROWS[f"account_tax.{name}"] == set()


def test_nodes_know_nothing_of_kedro():
    allowed = {*(PACKAGE / name for name in KNOW_KEDRO), PACKAGE / "parameters/kedro_loader.py"}
    users = {
        file
        for name, (file, tree) in MODULES.items()
        if any(full.partition(".")[0] == "kedro" for full in imported(name, file, tree))
    }
    assert {file for file in users - allowed if file.name != "pipeline.py"} == set()


def torch_free(text):
    """Return the paths below the package whose lines in the tree say so."""
    (tree,) = blocks(text, "tree")
    lines = zip(filter(str.strip, tree.splitlines()), tree_paths(tree), strict=True)
    below = f"{PACKAGE.relative_to(REPOSITORY)}/"
    return [path.removeprefix(below) for line, path in lines if "no torch" in line]


def test_what_starts_fast_brings_no_torch():
    rooms = torch_free(DESIGN)
    assert {"launch/", "parameters/", "backends/", "registry/find.py"} <= set(rooms)
    names = [name for name in MODULES if room_of(name, rooms)]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if brought := {'torch', 'transformers'} & sys.modules.keys():\n"
        "        sys.exit(f'{name} brings {brought}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- sizes ----------------------------------------------------------------------------------------


def lines_of(function):
    """Return how many lines a function has, its decorators and docstring left out."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def functions_longer_than(most, modules):
    """Return the functions with more lines, each with its module."""
    return [
        f"{name}.{node.name}: {lines_of(node)}"
        for name, (_, tree) in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > most
    ]


def test_no_function_is_longer_than_its_reader_can_hold():
    assert functions_longer_than(MOST_LINES, MODULES) == []


def test_few_modules_lie_loose_in_the_root():
    assert len([*PACKAGE.glob("*.py")]) - 1 <= MOST_LOOSE_MODULES  # less __init__.py


def is_one_sentence(text):
    """Return whether a text is a sentence with an end, and no second one begins."""
    return text.endswith((".", "?")) and not re.search(r"[.!?]\s+[A-Z`]", text)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_said_in_one_sentence(name):
    file, tree = MODULES[name]
    said = ast.get_docstring(tree) or ""
    summary, _, reasons = said.partition("\n\n")
    assert is_one_sentence(summary), said
    assert not (reasons and file.name == "__init__.py"), said


# --- other libraries' private names ---------------------------------------------------------------


def is_private(name):
    """Return whether a name begins with one underscore."""
    return bool(re.match(r"_(?!_)\w", name))


def defined(tree):
    """Yield the names that a module defines: functions, classes, variables, fields of self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] * (ast.unparse(node.value) == "self")


def used(tree):
    """Yield the private names that a module takes: attributes, keys and imports of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield str(node.slice.value)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in ("getattr", "hasattr", "setattr", "delattr", "get", "pop"):
                yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from node.module.split(".")
            yield from (alias.name for alias in node.names)


def inherited(name, tree):
    """Yield the private names of a module's classes that a library's base class has as well."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.ClassDef) and node.bases):
            continue
        own = {*defined(node), *used(node)}
        of_class = getattr(importlib.import_module(name), node.name, None)
        bases = inspect.getmro(of_class)[1:] if of_class else ()
        for base in bases:
            if not base.__module__.startswith("account_tax") and base.__module__ != "builtins":
                yield from own & names_in(base)


def names_in(of_class):
    """Return what a class has, and what its code calls `self.NAME`."""
    try:
        source = inspect.getsource(of_class)
    except (OSError, TypeError):
        source = ""
    return {*vars(of_class), *re.findall(r"\bself\.(\w+)", source)}


def foreign_private_names(modules):
    """Return (name, module's path) of each private name of a library that the package relies on."""
    ours = {each for _, tree in modules.values() for each in defined(tree)} | OF_PYTHON
    found = set()
    for name, (file, tree) in modules.items():
        taken = {*(set(used(tree)) - ours), *inherited(name, tree)}
        path = file.relative_to(PACKAGE).as_posix()
        found |= {(each, path) for each in taken if is_private(each)}
    return found


def listed_private_names(text):
    """Return name, library, version and modules of each row of the list in docs/dependencies.md."""
    section = text.split("## Private names of others\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (\S+) (\S+) \| (`.+?) \| .+ \|$", section, re.M)
    return [
        (re.findall(r"`(?:\w+\.)*(\w+)`", names), library, of, re.findall(r"`(.+?)`", modules))
        for names, library, of, modules in rows
    ]


def test_private_names_of_others_stand_in_one_list():
    listed = {
        (name, module)
        for names, _, _, modules in listed_private_names(DEPENDENCIES)
        for name in names
        for module in modules
    }
    assert listed == foreign_private_names(MODULES)


def test_private_names_were_looked_at_in_the_version_that_is_locked():
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for _, library, of, _ in listed_private_names(DEPENDENCIES):
        assert of == (python if library == "Python" else version(library)), library


# --- the tests ------------------------------------------------------------------------------------


def test_tests_mirror_the_package():
    missing = []
    for file in TESTS.rglob("test_*.py"):
        place = file.relative_to(TESTS).parent / file.name.removeprefix("test_")
        if place.parts[0] == "integration" or place.with_suffix("").as_posix() in WHOLE:
            continue
        root = REPOSITORY if place.parts[0] == "tools" else PACKAGE
        if not ((root / place).is_file() or (root / place.with_suffix("")).is_dir()):
            missing.append(file.relative_to(TESTS).as_posix())
    assert missing == []


# --- the checks can fail --------------------------------------------------------------------------


def write_package(folder, texts):
    """Return the modules of a package with the given texts, by path."""
    package = folder / "account_tax"
    for path, text in texts.items():
        file = package / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return read_package(package)


INWARD = [["storage/"], ["launch/", "review/"], ["cli.py"]]


@pytest.mark.parametrize(
    "text",
    [
        "from account_tax.launch.plan import Plan",
        "from account_tax.launch import plan",
        "import account_tax.cli",
        "from ..launch.plan import Plan",
        "def late():\n    from account_tax.launch.plan import Plan",
        "import importlib\nimportlib.import_module('account_tax.launch.plan')",
        "command = ['python', '-m', 'account_tax.launch.plan']",
        "def any(name):\n    return __import__(f'account_tax.launch.{name}')",
        "import importlib\nimportlib.import_module('.plan', 'account_tax.launch')",
        "import importlib\nimportlib.import_module('..launch.plan', __package__)",
        "from importlib import import_module\nimport_module('account_tax.' + 'launch.plan')",
        "command = 'python -m account_tax.launch.plan --dry-run'",
        "ENTRY = 'account_tax.launch.plan:Plan'",
    ],
)
@pytest.mark.parametrize("place", ["storage/files", "review/gates"])
def test_an_import_against_the_layers_is_found(tmp_path, place, text):
    texts = {"launch/__init__.py": "", "launch/plan.py": "Plan = 1", "cli.py": ""}
    modules = write_package(tmp_path, texts | {f"{place}.py": text})
    found = against_the_layers(find_arrows(modules), INWARD)
    assert found
    assert {each.partition(" imports account_tax.")[0] for each in found} == {
        f"account_tax.{place.replace('/', '.')}"
    }


def test_a_circle_is_found(tmp_path):
    late = "def late():\n    from . import names"
    texts = {"storage/files.py": late, "storage/names.py": "from .files import late"}
    modules = write_package(tmp_path, texts)
    assert set(find_circle(find_arrows(modules))) == {
        "account_tax.storage.files",
        "account_tax.storage.names",
    }


def test_a_long_function_is_found(tmp_path):
    body = "    x = 1\n" * 3
    text = f'def f():\n    """Say.\n\n    More.\n    """\n{body}'
    modules = write_package(tmp_path, {"cli.py": text})
    assert functions_longer_than(3, modules) == ["account_tax.cli.f: 4"]
    assert functions_longer_than(4, modules) == []


def test_a_private_name_is_found():
    text = "from lib._inner import _Thing\na._b\nc['_d']\ngetattr(e, '_f')\nos.path"
    assert {name for name in used(ast.parse(text)) if is_private(name)} == {
        *("_inner", "_Thing", "_b", "_d", "_f")
    }


def test_two_sentences_are_found():
    assert is_one_sentence("What lies on disk: names, e.g. of files.")
    assert not is_one_sentence("One. Two.")
    assert not is_one_sentence("No end")
