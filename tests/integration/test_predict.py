"""One trained version, asked in every way there is: each gives the same labels."""

from __future__ import annotations

import csv
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from .conftest import MARKER, Project, kedro_words, write_ledger
from .servers import HttpServer

pytestmark = pytest.mark.integration

MODEL = "models:/account-tax@challenger"
ROWS = 120


@pytest.fixture(scope="module")
def trained(new_project, tiny) -> Project:
    project = new_project()
    options = [each for each in tiny if not each.startswith(("num_gpus", "max_steps"))]
    more = ["num_gpus=1", "learning_rate=0.02", "max_steps=60"]
    finished = project.kedro_train(*kedro_words([*options, *more]))
    assert finished.returncode == 0, finished.output
    return project


@pytest.fixture(scope="module")
def ledger(trained) -> Path:
    """Lines with one that has no text, and a column that no model reads."""
    path = write_ledger(trained.folder / "data" / "source.csv", ROWS)
    with path.open(encoding="utf-8", newline="") as file:
        texts = [text for text, _ in list(csv.reader(file))[1:]]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate([*texts, ""])])
    return path


@pytest.fixture(scope="module")
def filed(trained, ledger) -> pd.DataFrame:
    """The ledger as `mlflow run . -e predict` files it; everything else is compared with it."""
    given = [f"model={MODEL}", "input=data/source.csv", "output=data/filed.csv"]
    given += ["top_k=2", "on_error=skip", "batch_rows=50", "precision=fp32"]
    words = [word for option in given for word in ("-P", option)]
    finished = trained.run("mlflow", "run", ".", "-e", "predict", "--env-manager", "local", *words)
    assert finished.returncode == 0, finished.output
    assert "rows rejected            1 (filed.csv.rejects.jsonl)" in finished.output
    assert MARKER not in finished.output
    return pd.read_csv(trained.folder / "data" / "filed.csv", dtype={"id": str, "text": str})


def test_every_line_is_filed_in_its_place(trained, filed):
    assert filed["id"].tolist() == [str(number) for number in range(ROWS)]
    assert list(filed.columns) == [
        *("id", "text", "label", "score", "label_2", "score_2", "needs_review")
    ]
    assert filed["label"].nunique() > 1
    rejects = (trained.folder / "data/filed.csv.rejects.jsonl").read_text()
    assert json.loads(rejects) == {"line": ROWS + 2, "reason": "no text in text"}


def test_the_threshold_of_the_version_decides_who_looks(trained, filed):
    version = trained.client().get_model_version_by_alias("account-tax", "challenger")
    run = trained.client().get_run(str(version.run_id))
    assert {"test/ece", "test/ece_uncalibrated", "test/coverage"} <= run.data.metrics.keys()
    assert "## Scores" in version.description
    threshold = trained.runs()[0].data.tags["account_tax.threshold"]
    expected = [threshold == "none" or score < float(threshold) for score in filed["score"]]
    assert filed["needs_review"].tolist() == expected


def test_ledger_text_is_not_in_the_store(trained, filed):
    (run,) = [each for each in trained.runs() if "predict/rows_read" in each.data.metrics]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["predict/rows_rejected"] == 1
    assert not trained.client().list_artifacts(run.info.run_id)
    assert MARKER.lower().encode() not in (trained.folder / "mlflow.db").read_bytes().lower()


def test_a_row_that_can_not_be_filed_is_status_3(trained, ledger, filed, tmp_path):
    output = tmp_path / "filed.jsonl"
    words = ("--model", MODEL, "--input", str(ledger), "--output", str(output))
    finished = trained.run("kedro", "predict", *words)
    assert finished.returncode == 3, finished.output
    assert "1 row can't be filed" in finished.output
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert trained.runs()[0].info.status == "FAILED"
    version = trained.client().get_model_version_by_alias("account-tax", "challenger")
    in_bf16 = float(version.tags.get("bf16_other_labels", "1")) <= 0.001
    assert trained.runs()[0].data.tags["account_tax.precision"] == ("bf16" if in_bf16 else "fp32")
    assert [row["label"] for row in rows] == filed["label"].tolist()
    difference = abs(filed["score"] - [row["score"] for row in rows]).max()
    assert (1e-5 if in_bf16 else 0) <= difference < (0.05 if in_bf16 else 1e-5)


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory) -> Iterator[str]:
    """`mlflow models serve` of the same version, on a free loopback port."""
    command = ("mlflow", "models", "serve", "--model-uri", MODEL, "--env-manager", "local")
    server = HttpServer(
        tmp_path_factory.mktemp("served"),
        *(*command, "--workers", "1"),
        health="/ping",
        MLFLOW_TRACKING_URI=trained.store,
    )
    yield server.address
    server.kill()


def ask(uri: str, question: dict) -> pd.DataFrame:
    request = urllib.request.Request(
        f"{uri}/invocations",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return pd.DataFrame(json.load(response)["predictions"])


def test_a_server_gives_the_same_labels(served, filed):
    records = filed[["text"]].to_dict("records")
    plain = ask(served, {"dataframe_records": records})
    assert list(plain.columns) == ["label", "score"]
    assert plain["label"].tolist() == filed["label"].tolist()
    assert plain["score"].tolist() == pytest.approx(filed["score"].tolist(), abs=1e-5)
    params = {"top_k": 2, "needs_review": True}
    more = ask(served, {"dataframe_records": records, "params": params})
    assert list(more.columns) == ["label", "score", "label_2", "score_2", "needs_review"]
    assert more["label_2"].tolist() == filed["label_2"].tolist()


def test_spark_gives_the_same_labels(trained, filed, monkeypatch):
    sql = pytest.importorskip(
        "pyspark.sql", reason="pyspark is no dependency of the project; install it beside a JDK"
    )
    import mlflow

    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        monkeypatch.setenv(name, sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.store)
    mlflow.set_tracking_uri(trained.store)
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    try:
        answer = mlflow.pyfunc.spark_udf(
            spark, MODEL, env_manager="local", result_type="label string, score double"
        )
        frame = spark.createDataFrame(filed[["id", "text"]].astype(object)).repartition(2)
        found = frame.withColumn("found", answer("text")).select("id", "found.*").toPandas()
    finally:
        spark.stop()
    found = found.set_index("id").loc[filed["id"]]
    assert found["label"].tolist() == filed["label"].tolist()
    assert found["score"].tolist() == pytest.approx(filed["score"].tolist(), abs=1e-5)
