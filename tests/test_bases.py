"""What is trained can be loaded: every kind of base, head and adapter, two steps each.

The whole matrix takes minutes: `pytest -m slow tests/test_bases.py`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from account_tax.model.classifier import load_classifier
from tests.bases import FAMILIES, KINDS, changes, make_base, train_in_process

POOLINGS = ("cls", "mean")
# One of each kind, and the families that failed in their own way.
FAST = [
    *(("roberta", "cls", kind) for kind in KINDS),
    *((family, "cls", "plain") for family in FAMILIES if family != "roberta"),
    *((family, "mean", "plain") for family in ("bert", "llama")),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Give what returns a family's tiny base."""
    made = {}
    folder = tmp_path_factory.mktemp("bases")

    def base(family):
        if family not in made:
            made[family] = make_base(folder / family, family)
        return made[family]

    return base


@pytest.mark.parametrize(
    ("family", "pooling", "kind"),
    [
        pytest.param(
            *(family, pooling, kind),
            marks=[] if (family, pooling, kind) in FAST else pytest.mark.slow,
        )
        for family in FAMILIES
        for pooling in POOLINGS
        for kind in KINDS
    ],
)
def test_what_was_trained_is_loaded_with_the_trainers_logits(
    bases, tmp_path, family, pooling, kind
):
    folder = train_in_process(bases(family), tmp_path, **changes(family, pooling, kind))
    probe = json.loads((folder / "probe.json").read_text())
    loaded = load_classifier(folder).logits(probe["texts"])
    assert np.abs(loaded - np.array(probe["logits"])).max() <= 1e-5
