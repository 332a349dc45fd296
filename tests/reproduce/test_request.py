import pytest

from account_tax.errors import Refused
from account_tax.reproduce.request import read_request
from tests.test_mlproject import REPOSITORY


def test_rungs_are_read_in_any_order_and_stand_on_the_first():
    assert read_request(REPOSITORY, ["--rungs", "r3, R1"]).rungs == ["R0", "R1", "R3"]
    assert read_request(REPOSITORY, []).rungs == ["R0", "R1", "R2", "R3"]
    with pytest.raises(Refused, match=r'"R4"\] \(--rungs\): expected some of R0, R1, R2, R3'):
        read_request(REPOSITORY, ["--rungs", "R0,R4"])


def test_a_key_that_can_not_be_read_is_told_with_the_other_faults():
    with pytest.raises(Refused, match="2 problems in the options") as refused:
        read_request(REPOSITORY, ["--seeds", "--verify_key", "nofile.pem"])
    assert "verify_key = nofile.pem: can't be read as a public key" in str(refused.value)
    assert "--seeds: expected a value after it" in str(refused.value)


def test_what_no_rung_that_is_climbed_uses_is_refused():
    words = ["--run_code", "yes", "--seeds", "5", "--data", "x.csv"]
    assert read_request(REPOSITORY, words).seeds == 5
    with pytest.raises(Refused, match="3 problems in the options") as refused:
        read_request(REPOSITORY, [*words, "--rungs", "R1"])
    for name in ("run_code", "seeds", "data"):
        assert f"{name} (-P {name}): for " in str(refused.value)
    with pytest.raises(Refused, match=r"for R3 only, which rungs = R0,R2 leaves out"):
        read_request(REPOSITORY, ["--rungs", "R2", "--data", "x.csv", "--seeds", "4"])
