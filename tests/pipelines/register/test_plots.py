import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from account_tax.pipelines.register.plots import save_plots

HISTORY = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "loss": 1.0},
    {"step": 2, "eval_loss": 1.1, "eval_f1": 0.7},
    {"step": 2, "train_runtime": 3.0},
]


def make_evaluation(labels):
    counts = np.eye(len(labels), dtype=int) * 31 + np.eye(len(labels), k=1, dtype=int) * 4
    per_class = [{"label": label, "f1": 0.5, "support": 35} for label in labels]
    return {"labels": labels, "confusion_matrix": counts.tolist(), "per_class": per_class}


def texts(path):
    tree = ElementTree.parse(path)
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def hangul(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return save_plots(tmp_path, make_evaluation(["접대비", "통신비 $1 $2"]), HISTORY)


def test_labels_stay_text_so_that_the_viewer_draws_hangul(hangul):
    for plot in hangul[:2]:
        assert {"접대비", "통신비 $1 $2"} <= set(texts(plot))


def test_same_numbers_give_the_same_bytes(hangul, tmp_path):
    again = save_plots(tmp_path / "again", make_evaluation(["접대비", "통신비 $1 $2"]), HISTORY)
    assert [plot.read_bytes() for plot in again] == [plot.read_bytes() for plot in hangul]


def test_few_classes_have_numbers_in_the_cells_and_many_have_not(hangul, tmp_path):
    many = save_plots(tmp_path / "many", make_evaluation([f"c{i}" for i in range(77)]), HISTORY)
    assert texts(hangul[0]).count("31") == 2
    assert "31" not in texts(many[0])
    assert "c76" in texts(many[0])


def test_an_account_without_a_test_row_has_no_score(tmp_path):
    evaluation = make_evaluation(["a", "b"])
    evaluation["per_class"][1] |= {"support": 0, "f1": None}
    drawn = texts(save_plots(tmp_path, evaluation, HISTORY)[1])
    assert {"n/a", "0 rows", "0.50"} <= set(drawn)


def test_plots_grow_with_the_classes(hangul, tmp_path):
    many = save_plots(tmp_path / "many", make_evaluation([f"c{i}" for i in range(77)]), HISTORY)

    def height(path):
        return float(ElementTree.parse(path).getroot().get("height").removesuffix("pt"))

    assert height(many[0]) > 3 * height(hangul[0])
    assert height(many[1]) > 3 * height(hangul[1])


def test_learning_curve_names_its_series(hangul):
    assert texts(hangul[2]).count("validation") == 2
    assert texts(hangul[2]).count("training") == 1


def test_a_run_too_short_to_log_still_has_its_plots(tmp_path):
    assert all(plot.exists() for plot in save_plots(tmp_path, make_evaluation(["a", "b"]), []))
