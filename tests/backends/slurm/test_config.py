import json
from pathlib import Path

import pytest

from account_tax.backends.slurm.config import SlurmConfigError, read_config

REPOSITORY = Path(__file__).parents[3]


def faults(**given):
    with pytest.raises(SlurmConfigError) as caught:
        read_config(given)
    return str(caught.value)


def test_the_shipped_example_is_a_configuration():
    config = read_config(json.loads((REPOSITORY / "backends/slurm.json").read_text()))
    assert "--nodes=2" in config.sbatch_options()
    assert config.wait


def test_a_rank_for_each_gpu_unless_told_otherwise():
    assert read_config({"time": "30", "gpus_per_node": 4}).ranks_per_node == 4
    assert read_config({"time": "30", "gpus_per_node": 4, "tasks_per_node": 2}).ranks_per_node == 2
    assert read_config({"time": "30"}).sbatch_options() == [
        "--nodes=1",
        "--ntasks-per-node=1",
        "--time=30",
    ]


def test_an_unknown_key_is_named_with_the_nearest():
    assert "acount: unknown key. Did you mean account?" in faults(time="30", acount="x")
    assert "gpus-per-node: unknown key. Did you mean gpus_per_node?" in faults(
        **{"time": "30", "gpus-per-node": 2}
    )


def test_every_fault_is_said_at_once():
    said = faults(nodes=0, gpus_per_node="two", options=["--mem=3", "exclusive"])
    assert said.startswith("5 problems in the backend configuration")
    for part in (
        "time: missing; expected a limit such as 30, 2:00:00 or 1-12:00:00.",
        "nodes = 0: expected a whole number of at least 1.",
        'gpus_per_node = "two": expected a whole number of at least 0.',
        "options: --mem is settled elsewhere",
        "options: 'exclusive' is not of the form --name or --name=value.",
    ):
        assert part in said


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint"])
def test_a_word_can_not_bring_options_of_its_own(key):
    assert "expected text without spaces" in faults(time="30", **{key: "a --wrap=x"})


def test_a_setup_line_that_sets_a_secret_is_refused():
    said = faults(time="30", setup=["module load cuda", "export HF_TOKEN=abc"])
    assert "setup: line 2 sets HF_TOKEN" in said
    assert '"pass_environment": ["HF_TOKEN"]' in said
    assert "abc" not in said
