"""What a run would keep of the working tree."""

import pytest

from account_tax.launch.plan import _name_source, refuse_secrets
from account_tax.parameters.config import ConfigError, Resolved
from account_tax.parameters.schema import LaunchOptions
from account_tax.provenance.code import Code


def test_a_patch_with_a_secret_is_not_kept(monkeypatch):
    code = Code(commit="9" * 40, patch=b"+token = 'hf_123456'\n")
    refuse_secrets(code)
    monkeypatch.setenv("HF_TOKEN", "hf_123456")
    with pytest.raises(ConfigError, match="the value of HF_TOKEN is in changed files") as refused:
        refuse_secrets(code)
    assert "hf_123456" not in str(refused.value)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("train.a = b (c): no.", "train.a = b (c) (--train.a): no."),
        ("train.a = b (--train.a): no.", "train.a = b (--train.a): no."),
        ("train.m = {'x': 1}: no: none.", "train.m = {'x': 1} (mine.yml): no: none."),
        ("train.other = b: no.", "train.other = b: no."),
        ("a sentence", "a sentence"),
    ],
)
def test_a_fault_of_the_check_has_the_place_where_its_key_was_set(fault, named):
    sources = {"train.a": "--train.a", "train.m.x": "mine.yml"}
    assert _name_source(fault, Resolved(LaunchOptions(), {}, sources)) == named
