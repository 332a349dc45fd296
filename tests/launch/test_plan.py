"""What a run would keep of the working tree."""

import pytest

from account_tax.launch.plan import refuse_secrets
from account_tax.parameters.config import ConfigError
from account_tax.provenance.code import Code


def test_a_patch_with_a_secret_is_not_kept(monkeypatch):
    code = Code(commit="9" * 40, patch=b"+token = 'hf_123456'\n")
    refuse_secrets(code)
    monkeypatch.setenv("HF_TOKEN", "hf_123456")
    with pytest.raises(ConfigError, match="the value of HF_TOKEN is in changed files") as refused:
        refuse_secrets(code)
    assert "hf_123456" not in str(refused.value)
