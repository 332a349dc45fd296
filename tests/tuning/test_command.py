"""Whose study it is: one that another machine may be at is not taken from it."""

import json

import pytest
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.processes.identity import identify
from account_tax.tracking.ownership import OWNER_TAG
from account_tax.tuning.command import DIGESTS_TAG, _refuse_another


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
