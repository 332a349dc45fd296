"""The documents name only what exists; the last tests show that the checks find what does not."""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from account_tax.cli import cli
from account_tax.export.command import LOAD_CLS, LOAD_MEAN, USE
from account_tax.parameters.config import LaunchOptions, parse_command_line, read_aliases
from account_tax.parameters.help import train_options
from account_tax.parameters.kinds import Section
from account_tax.parameters.options import options_of, text_of
from account_tax.parameters.schema import everything
from account_tax.pipeline_registry import register_pipelines
from tests.test_mlproject import DECLARED

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "account_tax/src/account_tax"
GUIDES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
DOCUMENTS = [*GUIDES, REPOSITORY / "CHANGELOG.md"]
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

ENTRY_POINTS = yaml.safe_load((REPOSITORY / "MLproject").read_text())["entry_points"]
ALIASES = {name: key for key, name in read_aliases(REPOSITORY).items()}  # to key
# Of `train` and what else a page shows.
P_NAMES = {
    *(option.name for options in DECLARED.values() for option in options_of(options)),
    *(name for entry in ENTRY_POINTS.values() for name in entry.get("parameters", {})),
    *(each.name for each in train_options(REPOSITORY, search=True) if each.listed),
}
RECIPES = {path.stem for path in (REPOSITORY / "recipes").glob("*.yml")}
TREE_FOLDERS = [REPOSITORY, PACKAGE, PACKAGE / "pipelines", REPOSITORY / "conf/base/parameters"]
SOURCE_SUFFIXES = (".py", ".yml", ".yaml", ".toml", ".md", ".cfg")
WRITTEN_SUFFIXES = (".json", ".log", ".svg", ".safetensors")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


# --- what a document says -------------------------------------------------------------------------


def blocks(text, *kinds):
    """Return the fenced blocks of these kinds; of every kind if none is given."""
    return [body for kind, body in FENCE.findall(text) if not kinds or kind in kinds]


def spans(text):
    """Return the inline code of a text."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def code(text):
    """Return inline code and code lines, less the messages that quote a wrong name on purpose."""
    lines = [line for body in blocks(text) for line in body.splitlines()]
    return [*spans(text), *(line for line in lines if "unknown parameter" not in line)]


def p_names(text):
    """Return the names behind each -P: before a value, or alone in code or a message."""
    return re.findall(r"-P ([\w.]+)(?=[=`)])", text)


def dotted_keys(text):
    """Return the dotted parameters that code names; a file's or an artifact's name is none."""
    found = re.findall(r"(?<![\w./-])(?:data|train|registry)(?:\.\w+)+", "\n".join(code(text)))
    return [key for key in found if not key.endswith((*SOURCE_SUFFIXES, *WRITTEN_SUFFIXES))]


def paths(text):
    """Return what reads as a file or folder of the project, or as one it writes."""
    words = [word.strip("'\"(),;:") for line in code(text) for word in _whole_words(line)]
    named = [word for word in words if _is_path(word)]
    prose = FENCE.sub("", text)
    return named + re.findall(r"(?<![\w/.:<>*-])[\w-]+\.(?:py|yml|yaml|toml|md)\b", prose)


def _whole_words(line):
    return re.sub(r"<[^>]+>|NAME|\b[0-9a-f]{32}\b", "*", line.partition("#")[0]).split()


def _is_path(word):
    if re.search(r"://|[={}$]|^-|^/|^\.\.?$|\.\.\.", word):
        return False
    if word.endswith((*SOURCE_SUFFIXES, *WRITTEN_SUFFIXES)):
        return not word.startswith(".")
    first, slash, _ = word.partition("/")
    # A run makes data/, which is in no clone.
    return bool(slash) and (word.endswith("/") or first == "data" or (REPOSITORY / first).exists())


def tree_paths(body):
    """Return each line of a tree as a path; two spaces are one level."""
    parents, found = [], []
    for line in filter(str.strip, body.splitlines()):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name.rstrip("/")]
        found.append("/".join(parents) + "/" * name.endswith("/"))
    return found


def links(text):
    """Return the targets of the links to files of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))
    return [target for target in found if not re.match(r"\w+://", target)]


def headings(text):
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text, program):
    """Return the words after a program's name, once for each time that a command calls it."""
    lines = [*spans(text), *(line for body in blocks(text, "bash") for line in body.splitlines())]
    calls = [
        call
        for line in lines
        for call in re.findall(rf"(?:^|[\s;&]){program} ([\w-].*?)(?:\s#|&&|$)", line)
    ]
    return [shlex.split(call) for call in calls]


# --- what there is --------------------------------------------------------------------------------


def keys(section=None, prefix=""):
    """Yield every dotted key that a parameter may have, sections included."""
    for name, kind in (section or everything()).fields.items():
        yield f"{prefix}{name}"
        if isinstance(kind, Section):
            yield from keys(kind, f"{prefix}{name}.")


KEYS = set(keys())


@cache
def written_names():
    """Return the names that the code, the configuration and .gitignore give to what is written."""
    texts = [(REPOSITORY / ".gitignore").read_text()]
    for path in sorted((REPOSITORY / "conf/base").rglob("*.yml")):
        texts.append(yaml.safe_dump(yaml.safe_load(path.read_text())))
    for path in PACKAGE.rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        texts += [n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {word for text in texts for word in re.findall(r"[\w.-]+", text)}


def exists(path):
    """Return whether a path is in the project, or else each part of it is a name the code writes.

    A source file has to be there; only its folder may be left out.
    """
    relative = path.strip("/").removeprefix("./")
    if any(any(folder.glob(relative)) for folder in TREE_FOLDERS):
        return True
    if relative.endswith(SOURCE_SUFFIXES):
        folders = (PACKAGE, *(REPOSITORY / name for name in ("conf", "docs", "recipes", "tests")))
        return any(any(folder.rglob(relative)) for folder in folders)
    written = {"*", *written_names()}
    return all(part in written or part.lstrip("*") in written for part in relative.split("/"))


# --- the claims -----------------------------------------------------------------------------------


def test_there_are_documents_to_check():
    assert {path.name for path in DOCUMENTS} >= {"README.md", "CONTRIBUTING.md", "design.md"}
    readme = GUIDES[0].read_text()
    assert "recipes/starter.yml" in paths(readme)
    assert "train.loss.class_weights" in dotted_keys(readme)
    assert "lora_r" in p_names(readme)
    assert ["run", "--pipeline=prepare"] in commands(readme, "kedro")


@each_guide
def test_each_path_exists(guide):
    text = guide.read_text()
    named = paths(text) + [path for body in blocks(text, "tree") for path in tree_paths(body)]
    assert [path for path in named if not exists(path)] == []


@each_document
def test_each_link_leads_somewhere(document):
    for link in links(document.read_text()):
        target, _, anchor = link.partition("#")
        file = document.parent / target if target else document
        assert file.exists(), link
        assert not anchor or anchor in headings(file.read_text()), link


@each_guide
def test_each_p_name_is_one(guide):
    names = p_names(guide.read_text())
    assert [name for name in names if name not in {*P_NAMES, *KEYS}] == []


@each_guide
def test_each_dotted_key_is_a_parameter(guide):
    assert [key for key in dotted_keys(guide.read_text()) if key not in KEYS] == []


@each_guide
def test_each_recipe_exists(guide):
    named = re.findall(r"(?:\brecipe=|--recipe )([\w-]+)", "\n".join(code(guide.read_text())))
    assert set(named) <= RECIPES


@each_guide
def test_each_kedro_command_exists(guide):
    for command, *words in commands(guide.read_text(), "kedro"):
        if command == "viz":  # of Kedro-Viz, which is not in the lock
            continue
        assert command in cli.commands
        if command == "train":
            given = dict(parse_command_line([word for word in words if word != "--help"]))
            assert set(given) <= {*KEYS, *ALIASES.values()}
            assert given.get("recipe", "starter") in RECIPES
            continue
        given = dict(re.fullmatch(r"(--[\w-]+)=?(.*)", word).groups() for word in pair_up(words))
        context = click.Context(cli.commands[command])
        options = {each for param in context.command.get_params(context) for each in param.opts}
        assert {name.replace("-", "_") for name in given} <= {o.replace("-", "_") for o in options}
        assert given.get("--pipeline", "train") in register_pipelines()
        settings = dict(pair.split("=", 1) for pair in given.get("--params", "").split(",") if pair)
        assert set(settings) <= KEYS


def pair_up(words):
    """Return `--option value` as `--option=value`."""
    return re.sub(r"(--[\w-]+) (?!-)", r"\1=", " ".join(words)).split()


@each_guide
def test_each_mlflow_entry_point_and_marker_exists(guide, pytestconfig):
    text = "\n".join(code(guide.read_text()))
    assert set(re.findall(r"mlflow run \S+ -e (\w+)", text)) <= set(ENTRY_POINTS)
    known = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert set(re.findall(r"pytest -m (\w+)", text)) <= known


def test_the_deepspeed_command_has_options_of_deepspeed():
    calls = [words for words in commands(GUIDES[0].read_text(), "deepspeed") if "run" in words]
    runner = Path(importlib.util.find_spec("deepspeed").origin).parent / "launcher/runner.py"
    known = re.findall(r'"(--?\w+)"', runner.read_text())
    assert calls
    for words in calls:
        options = [word.partition("=")[0] for word in words[: words.index("kedro")]]
        assert {"--module", "--no_local_rank"} <= set(options) <= set(known)


@pytest.mark.parametrize(("marker", "entry_point"), [("main job", "train"), ("tests", "test")])
def test_a_marked_command_is_one_line_that_brings_what_it_needs(marker, entry_point):
    readme = GUIDES[0].read_text()
    (body,) = re.findall(rf"^<!-- {marker} -->\n```bash\n(.*?)^```$", readme, re.M | re.S)
    (line,) = body.splitlines()
    words = shlex.split(line)
    assert words[words.index("-e") + 1] == entry_point
    assert entry_point in ENTRY_POINTS
    assert words[:4] == ["python3", "-m", "venv", ".uv"]
    assert line.endswith("--env-manager uv")
    # uvx brings MLflow before the project's environment is there: the version that is locked.
    uvx = words[words.index("uvx") :]
    assert uvx[1:4] == ["-c", "requirements.lock", "mlflow"]
    assert "\nmlflow==" in (REPOSITORY / "requirements.lock").read_text()


def test_the_readme_has_a_place_for_the_output():
    assert re.search(r"^<!-- output -->\n```text\n.+?^```$", GUIDES[0].read_text(), re.M | re.S)


def table(text, heading):
    """Return the rows of the first table under a heading, as lists of cells."""
    section = re.split(rf"^## {heading}$", text, flags=re.M)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [[re.sub("^`([^`]*)`$", r"\1", cell) for cell in row] for row in cells]


def test_the_readme_lists_every_p_name_with_its_key_and_default():
    rows = {name: (key, note) for name, key, note in table(GUIDES[0].read_text(), "Parameters")}
    assert set(rows) == {each.name for each in train_options(REPOSITORY) if each.listed}
    for name, (key, note) in rows.items():
        own = name == key == "precision" or hasattr(LaunchOptions, name)
        assert key == ALIASES.get(name) or own, name
        default = text_of(getattr(LaunchOptions, name, None))
        shown = re.search("default `(.*?)`", note)
        assert (shown[1] if shown else "") == default, name


@pytest.mark.parametrize("entry_point", ["review", "compare", "reproduce", "predict", "export"])
def test_the_review_page_lists_every_p_name_with_its_default(entry_point):
    text = (REPOSITORY / "docs/review.md").read_text()
    section = re.split(rf"^## {entry_point.capitalize()}$", text, flags=re.M)[1].split("\n## ")[0]
    body = section.partition("| -P | default |")[2]
    found = {}
    for names, default in re.findall(r"^\| (`[^|]+) \|([^|]*)\|", body, re.M):
        for name in re.findall(r"`(\w+)`", names):
            found[name] = default.strip(" `")
    assert set(found) == {option.name for option in options_of(DECLARED[entry_point])}
    for option in options_of(DECLARED[entry_point]):
        assert found[option.name] == option.default, option.name


@pytest.mark.parametrize("code", [LOAD_CLS, LOAD_MEAN, USE])
def test_the_review_page_loads_an_export_as_the_tests_do(code):
    assert code in blocks((REPOSITORY / "docs/review.md").read_text(), "python")


def test_the_readme_lists_every_recipe_with_its_command():
    rows = table(GUIDES[0].read_text(), "Recipes")
    assert sorted(row[0] for row in rows) == sorted(RECIPES)
    for recipe, *_, command, _ in rows:
        named = re.search(r"recipe=(\S+)", command)
        assert (named[1] if named else "starter") == recipe


# The hosts are not spelled out: this file keeps the rule as well.
REGISTRY_HOST = re.compile(
    r"\b(?:pypi|pythonhosted|anaconda|pytorch)\.(?:org|com|cloud)\b|--(?:extra-)?index-url|--find-links"
)
MACHINE_PATH = re.compile(
    r"(?<![\w.:/<>*~-])/(?:home|root|work|tmp|usr|opt|mnt|data|Users|var|etc|srv)\b|[A-Z]:\\"
)


@each_document
def test_no_registry_host_and_no_machine_path(document):
    text = document.read_text()
    assert not REGISTRY_HOST.search(text)
    assert not MACHINE_PATH.search(text)


# --- the checks can fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "conf/base/catalogue.yml",
        "data/06_modles/<run id>/",
        "data/06_models/<run id>/adaptor/",
        "launch/stage.py",
        "training_metric.json",
        "benchmarks/speed/",
        "recipes/<name>.toml",
    ],
)
def test_a_wrong_path_is_found(path):
    (found,) = paths(f"see `{path}`")
    assert not exists(found)


def test_a_wrong_line_of_a_tree_is_found():
    body = "conf/\n  base/   settings\n    catalogue.yml  data\n  lokal/\n"
    assert [exists(path) for path in tree_paths(body)] == [True, True, False, False]


def test_a_wrong_name_is_found():
    text = "`train.lora.rank`, `mlflow run . -P lora_rank=8 -P train.lora.q=1`, `kedro trian`"
    assert not set(dotted_keys(text)) & KEYS
    assert not set(p_names(text)) & {*P_NAMES, *KEYS}
    assert commands(text, "kedro")[0][0] not in cli.commands


@pytest.mark.parametrize("text", ["https://pypi" + ".org/simple", "pip --index-url x"])
def test_a_registry_host_is_found(text):
    assert REGISTRY_HOST.search(text)


@pytest.mark.parametrize("text", ["`/home/me/x`", "in /tmp/run", "=/root/venv"])
def test_a_machine_path_is_found(text):
    assert MACHINE_PATH.search(text)


# --- the promises ---------------------------------------------------------------------------------


def test_every_promise_names_tests_that_exist():
    there = "\n".join(file.read_text() for file in REPOSITORY.glob("tests/**/test_*.py"))
    rows = re.findall(
        r"^\| (?!promise|---)(.*) \| (.*) \|$", (REPOSITORY / "docs/security.md").read_text(), re.M
    )
    assert len(rows) > 20
    for promise, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, promise
        assert [name for name in named if f"def {name}(" not in there] == []
