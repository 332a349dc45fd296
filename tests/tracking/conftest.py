import pytest
from mlflow import MlflowClient

from account_tax.tracking.metric_journal import (
    MetricJournal,
    journal_file,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store):
    return MlflowClient(store)


@pytest.fixture
def run_id(client, tmp_path):
    return client.create_run(client.create_experiment(tmp_path.name)).info.run_id


@pytest.fixture
def file(tmp_path, run_id):
    return journal_file(tmp_path, run_id)


@pytest.fixture
def journal(file):
    journal = MetricJournal(file)
    yield journal
    journal.close()
