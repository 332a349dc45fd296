"""Whose study it is: one that another machine may be at is not taken from it."""

import json

import pytest
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.processes.identity import identify
from account_tax.tracking.ownership import OWNER_TAG
from account_tax.tuning.command import DIGESTS_TAG, _refuse_another, read_asked
from tests.test_mlproject import REPOSITORY


def test_faults_of_words_and_of_the_space_are_said_together(tmp_path):
    space = tmp_path / "space.yml"
    space.write_text("train.lora.rr: {type: int, low: 1, high: 2}\n")
    with pytest.raises(Refused) as refused:
        read_asked(REPOSITORY, ["--trials", "0", "--space", str(space)])
    assert "2 problems in the parameters" in str(refused.value)
    assert "tuning.trials = 0 (--trials)" in str(refused.value)
    assert "Did you mean train.lora.r?" in str(refused.value)
    with pytest.raises(Refused, match="1 problem"):
        read_asked(REPOSITORY, ["--recipe", "starer", "--space", str(space)])


def test_a_study_of_another_machine_is_taken_up_where_its_folder_is_shared(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    owner, now = identify().replace("host=", "host=another-"), {"space": "1"}
    tags = {OWNER_TAG: owner, DIGESTS_TAG: json.dumps(now)}
    earlier = client.create_run(client.create_experiment("tune"), tags=tags)
    with pytest.raises(Refused, match="under way on another machine"):
        _refuse_another(earlier, "mine", "rates", now, tmp_path)
    (tmp_path / earlier.info.run_id).mkdir()
    _refuse_another(earlier, "mine", "rates", now, tmp_path)
    (tmp_path / earlier.info.run_id).rmdir()
    client.set_terminated(earlier.info.run_id, "KILLED")
    _refuse_another(client.get_run(earlier.info.run_id), "mine", "rates", now, tmp_path)
