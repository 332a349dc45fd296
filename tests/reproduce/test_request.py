import pytest

from account_tax.errors import Refused
from account_tax.reproduce.request import read_request
from tests.test_mlproject import REPOSITORY


def test_rungs_are_read_in_any_order_and_stand_on_the_first():
    assert read_request(REPOSITORY, ["--rungs", "r3, R1"]).rungs == ["R0", "R1", "R3"]
    assert read_request(REPOSITORY, []).rungs == ["R0", "R1", "R2", "R3"]
    with pytest.raises(Refused, match=r'"R4"\] \(--rungs\): expected some of R0, R1, R2, R3'):
        read_request(REPOSITORY, ["--rungs", "R0,R4"])
