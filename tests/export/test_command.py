"""An export's parts; tests/integration/test_export.py loads whole ones as their README says."""

import ast
from types import SimpleNamespace

import pytest

from account_tax.errors import Refused
from account_tax.export.command import (
    LOAD_CLS,
    LOAD_MEAN,
    standalone_loader,
    write_readme,
)
from account_tax.export.request import read_request
from tests.test_mlproject import REPOSITORY


def test_the_output_must_not_exist(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("there", "link"):
        with pytest.raises(Refused, match=f"{name} exists. Name a folder that doesn't."):
            read(tmp_path / name)
    with pytest.raises(Refused, match="its folder does not exist"):
        read(tmp_path / "missing" / "output")
    with pytest.raises(Refused, match=r"2 problems(.|\n)*verify_key = no.pem: can't be read"):
        read(tmp_path / "missing" / "output", "--verify_key", "no.pem")
    asked = read(tmp_path / "new")
    assert (asked.output, asked.name, asked.reference) == (
        *(tmp_path / "new", "account-tax", "challenger"),
    )


def read(output, *more):
    return read_request(REPOSITORY, ["--output", str(output), *more])


def test_the_loader_stands_alone():
    tree = ast.parse(standalone_loader())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "typing", "torch", "transformers", *OUTPUTS}
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes == [
        *("MeanPoolingClassifier", "MeanPoolingConfig", "MeanPoolingForSequenceClassification"),
    ]


OUTPUTS = {"transformers.modeling_outputs"}


@pytest.mark.parametrize(("pooling", "load"), [("cls", LOAD_CLS), ("mean", LOAD_MEAN)])
def test_the_readme_says_how_to_load_it_and_whose_licence_holds(pooling, load):
    settings = {
        "pooling": pooling,
        "base": {"name": "org/base", "revision": "4" * 40, "sha256": "d" * 64},
        "text_columns": ["memo", "shop"],
        "separator": " | ",
        "max_length": 64,
    }
    loaded = SimpleNamespace(settings=settings, labels=["travel", "meals"], ngrams=None)
    version = SimpleNamespace(name="books", version="3", tags={"content_sha256": "a" * 64})
    text = write_readme(loaded, version)
    assert f"```python\n{load}```" in text
    assert "columns memo, shop" in text
    assert "joined by ` | `" in text
    assert "see the base" in text.partition("## Licence")[2]
