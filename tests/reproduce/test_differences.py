"""Which input differs, named in one order."""

from account_tax.registry.record import Difference
from account_tax.reproduce.differences import (
    CAUSES,
    configuration_differences,
    environment_differences,
    first_cause,
)

ENVIRONMENT = {
    "packages": {"numpy": "2.1", "torch": "2.13.0"},
    **{"python": "3.11.7", "libc": "glibc 2.36", "torch_cuda": None},
    **{"cpu": "a CPU", "gpus": [], "driver": None, "cores": 2, "memory_bytes": 1},
}
PARAMETERS = {
    "data": {"source": "a.csv", "max_length": 64},
    "train": {"model": {"name": "/x"}, "lora": {"r": 8}, "training": {"output_dir": "x"}},
    "registry": {"name": "a"},
}


def test_the_same_environment_has_no_difference():
    other_cores = ENVIRONMENT | {"cores": 64, "memory_bytes": 2}  # decide speed, not bits
    assert environment_differences(ENVIRONMENT, other_cores) == []


def test_a_package_is_named_with_both_versions():
    now = ENVIRONMENT | {"packages": {"numpy": "2.2", "peft": "1"}}
    (found,) = environment_differences(ENVIRONMENT, now)
    assert found.cause == "environment"
    assert found.text == (
        "numpy 2.2 instead of 2.1; peft 1 instead of none; torch not installed instead of 2.13.0"
    )


def test_python_is_environment_and_a_cpu_is_hardware():
    now = ENVIRONMENT | {"python": "3.11.9", "cpu": "another"}
    found = environment_differences(ENVIRONMENT, now)
    assert found == [
        Difference("environment", "python 3.11.9 instead of 3.11.7"),
        Difference("hardware", "cpu another instead of a CPU"),
    ]


def test_only_what_decides_a_result_is_configuration():
    moved = {
        "data": {"source": "/b.csv", "max_length": 64},
        "train": {"model": {"name": "/y"}, "lora": {"r": 8}, "training": {"output_dir": "y"}},
    }
    assert configuration_differences(PARAMETERS, moved) == []
    moved["train"]["lora"]["r"] = 4
    (found,) = configuration_differences(PARAMETERS, moved)
    assert found == Difference("configuration", "train.lora.r = 4 instead of 8")


def test_the_first_cause_is_named():
    order = [Difference(cause, "x") for cause in CAUSES]
    while order:
        assert first_cause(order[::-1]) == order[0]
        order.pop(0)
    assert first_cause([]) is None


# --- the run's own record of its code -------------------------------------------------------------
