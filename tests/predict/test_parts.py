"""The parts of an output lie in a folder of the user's own."""

import pytest

from account_tax.errors import Refused
from account_tax.predict.parts import open_journal, parts_folder


def test_parts_never_lie_behind_a_planted_link(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    output = tmp_path / "filed.csv"
    parts_folder(output).symlink_to(theirs)
    with pytest.raises(Refused, match="is not this user's own"), open_journal(output, {}):
        pass
    assert list(theirs.iterdir()) == []
