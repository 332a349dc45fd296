"""What a run recorded, compared with the provenance."""

import hashlib
from types import SimpleNamespace

import pytest

from account_tax.registry.record import Difference, _changed
from tests.provenance.test_statement import make_statement

PATCH = b"--- a/x\n+++ b/x\n"
TAGS = {"commit": "9" * 40, "dirty": "true", "patch_sha256": hashlib.sha256(PATCH).hexdigest()}


@pytest.fixture(params=[True, False], ids=["with-provenance", "without"])
def changed(request):
    """Return what finds a change in files and tags of a run that has a statement, or none."""
    statement = make_statement(**TAGS) if request.param else None
    version = SimpleNamespace(tags={})
    return lambda raw, **tags: list(_changed(version, raw, statement, TAGS | tags))


def test_a_patch_is_the_recorded_one_or_the_code_differs(changed):
    assert changed({"code.patch": PATCH}) == []
    expected = f"instead of sha256 {TAGS['patch_sha256']}"
    (lost,) = changed({})
    assert (lost.cause, lost.text) == ("code", f"code.patch: missing {expected}")
    (other,) = changed({"code.patch": b"other"})
    assert other.cause == "code"
    assert other.text.endswith(expected)


def test_tags_that_are_not_the_provenances_are_code():
    statement = make_statement(**TAGS)
    found = _changed(
        SimpleNamespace(tags={}), {"code.patch": PATCH}, statement, TAGS | {"commit": "8" * 40}
    )
    text = f"the run's tag account_tax.commit: {'8' * 40} instead of {'9' * 40}"
    assert list(found) == [Difference("code", text)]
