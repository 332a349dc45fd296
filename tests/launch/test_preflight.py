import json
import shutil

import pytest

from account_tax.launch.preflight import preflight
from tests.image import ROOT


def words_of(backend, config):
    return ["--backend", backend, "--backend-config", config]


def test_a_backend_there_is_not_is_refused(tmp_path, capsys):
    assert preflight(tmp_path, ["--backend", "cloud", "--lora_r", "abc", "stray"]) == 2
    said = capsys.readouterr().err
    assert "backend = cloud (--backend): expected one of local, slurm, kubernetes, dat" in said
    assert "stray: expected an option" in said


@pytest.mark.parametrize("backend", ["kubernetes", "databricks", "slurm"])
def test_faults_of_backend_and_parameters_are_said_together(tmp_path, capsys, backend):
    for name in ("conf", "recipes", "MLproject", "backends"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"no_such_key": 1}))
    assert preflight(tmp_path, [*words_of(backend, "config.json"), "--lora_r", "abc"]) == 2
    said = capsys.readouterr().err
    assert f"problems before submitting to {backend}" in said
    assert "train.lora.r = abc (--lora_r): expected a whole number" in said
    assert backend == "slurm" or "no_such_key: unknown key" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no: No such file"), ("{", "no JSON"), ("[]", "expected an object")],
)
def test_a_configuration_that_can_not_be_read_is_named(tmp_path, capsys, text, said):
    if text is not None:
        (tmp_path / "no").write_text(text)
    assert preflight(tmp_path, words_of("kubernetes", "no")) == 2
    assert said in capsys.readouterr().err


def test_a_backend_elsewhere_needs_a_configuration(tmp_path, capsys):
    assert preflight(tmp_path, ["--backend", "databricks"]) == 2
    assert "--backend-config: not given" in capsys.readouterr().err
