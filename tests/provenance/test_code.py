"""The code of a run: its commit, and the patch that makes a clone the same; real repositories."""

import hashlib
import subprocess

import pytest

from account_tax.errors import Failed, Refused
from account_tax.provenance.code import (
    PACKAGE_FOLDER,
    Code,
    code_in_words,
    describe_code,
    digest_package,
    python_path,
)

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")
SECRET = "Confidential4711"


def git(folder, *words):
    done = subprocess.run(["git", *IDENTITY, *words], cwd=folder, capture_output=True, check=True)
    return done.stdout


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def tree(tmp_path):
    """A repository with code, a recipe and, committed by mistake, a ledger."""
    folder = tmp_path / "tree"
    files = {
        "account_tax/src/a.py": b"a = 1\n",
        "account_tax/src/gone.py": b"gone = 1\n",
        "recipes/starter.yml": b"train: {}\n",
        "MLproject": b"name: x\n",
        "conf/ledger.csv": b"text,label\n",
        ".gitignore": b"/data/\n",
    }
    write(folder, files)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "One")
    return folder


def test_a_clean_tree_has_no_patch(tree):
    code = describe_code(tree)
    assert code.commit == git(tree, "rev-parse", "HEAD").decode().strip()
    assert (code.dirty, code.patch, code.left_out) == (False, b"", ())
    package = {"package_sha256": digest_package(tree / PACKAGE_FOLDER)}
    assert code.tags() == {"commit": code.commit, "dirty": "false"} | package


def test_outside_a_repository_there_is_nothing_to_say(tmp_path):
    assert describe_code(tmp_path).tags() == {}


def test_without_git_there_is_nothing_to_say(tree, monkeypatch):
    monkeypatch.setenv("PATH", str(tree))
    assert describe_code(tree) == Code()
    assert code_in_words(Code().tags()).startswith("no commit")


def test_the_folder_says_which_repository_not_the_environment(tree, monkeypatch):
    before = describe_code(tree)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of git's
    assert describe_code(tree) == before


def test_the_patch_makes_a_clone_the_same(tree, tmp_path):
    write(
        tree,
        {
            "account_tax/src/a.py": "a = 2  # 여비교통비\n".encode(),
            "account_tax/src/new.py": b"new = 1\n",
            "tests/latin.py": b"# \xe9 is no UTF-8\n",
            "MLproject": b"name: y\r\n",
            "recipes/odd name.yml": b"train: {lora: {r: 4}}",
        },
    )
    (tree / "account_tax/src/gone.py").unlink()
    git(tree, "add", "account_tax/src/new.py")  # staged or not is all the same
    code = describe_code(tree)
    assert code.dirty
    assert code.tags()["patch_sha256"] == hashlib.sha256(code.patch).hexdigest()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(tree), str(clone))
    (tmp_path / "p").write_bytes(code.patch)
    git(clone, "apply", str(tmp_path / "p"))
    assert describe_code(clone).patch == code.patch
    for file in ("account_tax/src/a.py", "tests/latin.py", "MLproject", "recipes/odd name.yml"):
        assert (clone / file).read_bytes() == (tree / file).read_bytes()
    assert not (clone / "account_tax/src/gone.py").exists()


def test_the_users_index_is_never_touched(tree):
    write(tree, {"account_tax/src/new.py": b"new = 1\n", "account_tax/src/a.py": b"a = 2\n"})
    status = git(tree, "status", "--porcelain")  # which itself refreshes the index
    index = (tree / ".git/index").read_bytes()
    describe_code(tree)
    assert (tree / ".git/index").read_bytes() == index
    assert git(tree, "status", "--porcelain") == status


LEDGERS = [
    *("ledger.csv", "books.parquet", "account_tax/l.jsonl", "conf/l.xlsx", "recipes/l.tsv"),
    *("tests/books.txt", "tools/l.csv.gz", "account_tax/l.json", "books/l.py", "l.CSV", "conf/x"),
    *("conf/local/credentials.yml", "conf/base/credentials.yml", "conf/local/globals.yml"),
]


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_or_secret_never_gets_into_the_patch(tree, name):
    write(tree, {name: f"{SECRET},meals\n".encode(), "account_tax/src/a.py": b"a = 2\n"})
    code = describe_code(tree)
    assert code.dirty
    assert SECRET.encode() not in code.patch
    assert b"a = 2" in code.patch
    assert code.left_out == (name,)


def test_a_ledger_that_git_knows_stays_out_too(tree):
    write(tree, {"conf/ledger.csv": f"text,label\n{SECRET},x\n".encode()})
    code = describe_code(tree)
    assert (code.dirty, code.patch, code.left_out) == (False, b"", ("conf/ledger.csv",))
    assert "patch_sha256" not in code.tags()


def test_what_was_left_out_is_said_but_is_not_what_the_code_is_compared_by(tree):
    clean = describe_code(tree)
    assert code_in_words(clean.tags()) == f"commit {clean.commit[:12]}"
    write(tree, {f"books/{number}.csv": b"" for number in range(7)})
    code = describe_code(tree)
    assert code_in_words(code.tags()) == (
        f"commit {code.commit[:12]}, without 7 changed files that may be data: "
        "books/0.csv, books/1.csv, books/2.csv, ..."
    )
    assert not code.dirty
    assert code.identity() == clean.identity()
    write(tree, {"account_tax/src/a.py": b"a = 2\n"})
    changed = describe_code(tree)
    assert changed.identity() != clean.identity()
    said = (
        f"commit {code.commit[:12]} and code.patch {changed.patch_sha256[:12]} (1 changed file: "
        "account_tax/src/a.py), without 7 "
    )
    assert code_in_words(changed.tags()).startswith(said)


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        *((f"{folder}/x.yml", True) for folder in ("account_tax", "conf/base", "recipes")),
        *((name, True) for name in ("MLproject", "pyproject.toml", "conda.yaml", "conda-lock.yml")),
        *(("requirements.lock", True), ("account_tax/src/x.py", True)),
        *((name, False) for name in ("README.md", "tests/test_x.py", "tools/x.py", "docs/x.md")),
        *((name, False) for name in ("ledger.csv", "filed.csv", "exported/config.json", "key.pub")),
    ],
)
def test_only_what_decides_a_result_makes_the_tree_another(tree, name, decides):
    write(tree, {name: b"changed\n"})
    code = describe_code(tree)
    assert code.dirty == decides
    assert code.changed == ((name,) if decides else ())
    assert code.tags()["dirty"] == str(decides).lower()


def test_a_repository_that_can_not_be_written_to_is_described(tree):
    write(tree, {"account_tax/src/new.py": b"new = 1\n"})
    before = sorted((tree / ".git/objects").rglob("*"))
    assert b"new = 1" in describe_code(tree).patch
    assert sorted((tree / ".git/objects").rglob("*")) == before


def test_a_repository_inside_without_a_commit_hinders_nothing(tree):
    git(tree, "init", "-q", "books")
    write(tree, {"books/l.py": b"", "account_tax/src/new.py": b"new = 1\n"})
    assert b"new = 1" in describe_code(tree).patch


def test_what_git_refuses_is_said(tree):
    (tree / ".git/index").write_bytes(b"no index")
    with pytest.raises(Failed, match=r"git add .*index file"):
        describe_code(tree)


def test_what_git_ignores_is_no_change(tree):
    write(tree, {"data/06_models/x.py": b"x = 1\n"})
    assert not describe_code(tree).dirty


def test_a_users_settings_of_git_do_not_change_the_patch(tree):
    write(tree, {"account_tax/src/a.py": b"a = 2\n"})
    before = describe_code(tree).patch
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=true"):
        git(tree, "config", *setting.split("="))
    git(tree, "config", "diff.context", "0")
    assert describe_code(tree).patch == before
    assert b"--- a/account_tax/src/a.py" in before


def test_a_project_that_a_python_path_can_not_name_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"2026:11.*has ':'.*Move the project"):
        python_path(tmp_path / "2026:11")
    assert str(tmp_path) in python_path(tmp_path)["PYTHONPATH"]
