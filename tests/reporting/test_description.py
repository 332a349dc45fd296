"""What one writer of a description says stays when another one writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from account_tax.reporting import description
from account_tax.reporting.description import (
    BEGIN,
    CARD_CUT,
    END,
    compose,
    read_sections,
    write_section,
)
from account_tax.storage.names import LONGEST_TEXT

CARD = "# account-tax\n\nFiles a ledger line.\n\n## Limits\n\n- A person reviews every proposal."
LONG = "\n".join(f"| account {number} | 0.5000 |" for number in range(1000))
LINE = "Reproduced: BITWISE, 2026-11-24T18:00:00Z, run abc"
REVIEW = "# Review: gates passed\n\n| gate | outcome |"


def replaced(stored, **sections):
    return compose(read_sections(stored) | sections)


FRAMED = REVIEW.replace("passed\n", f"passed {BEGIN}\n") + f"\n{END}"
NEW = f"# new {BEGIN}\n{END}"


@pytest.fixture(params=["short", "long"])
def version(request, tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("account-tax")
    card = compose({"card": CARD if request.param == "short" else LONG})
    return client, client.create_model_version("account-tax", "file:///nowhere", description=card)


def test_a_review_keeps_the_line_of_reproduce_and_the_other_way_round(version):
    client, created = version  # read once: what is stored meanwhile must be read again
    for section, text in (
        ("reproduced", LINE),
        ("review", REVIEW),
        ("reproduced", LINE.replace("BITWISE", "DIFFERENT (data)")),
        ("review", "# Review: another"),
    ):
        write_section(client, created, section, text)
    stored = client.get_model_version("account-tax", "1").description
    assert len(stored) <= LONGEST_TEXT
    assert stored.startswith(f"# Review: another {BEGIN}\n{END}\n\n")
    assert stored.endswith("\n\nReproduced: DIFFERENT (data), 2026-11-24T18:00:00Z, run abc")
    assert stored.count("Reproduced: ") == stored.count(BEGIN) == 1
    assert CARD in stored or CARD_CUT in stored


def test_the_order_is_review_card_line():
    described = compose({"reproduced": LINE, "card": CARD, "review": REVIEW})
    assert described == f"{FRAMED}\n\n{CARD}\n\n{LINE}"
    assert compose(read_sections(described)) == described


@pytest.mark.parametrize("section", ["card", "review", "reproduced"])
def test_a_section_stands_alone(section):
    text = {"card": CARD, "review": FRAMED, "reproduced": LINE}[section]
    assert replaced("", **{section: REVIEW if section == "review" else text}) == text


def test_a_long_card_is_cut_at_a_line_and_says_where_the_rest_is():
    described = compose({"card": LONG, "review": REVIEW, "reproduced": LINE})
    assert LONGEST_TEXT - 100 < len(described) <= LONGEST_TEXT
    card = read_sections(described)["card"].strip()
    assert card.endswith(f"\n\n{CARD_CUT}")
    assert LONG.startswith(card.removesuffix(f"\n\n{CARD_CUT}") + "\n")
    again = replaced(described, review=f"{REVIEW}\nlonger")
    assert again.count(CARD_CUT) == 1
    assert len(again) <= LONGEST_TEXT


def test_a_card_in_one_line_is_cut_too():
    described = compose({"card": "x" * 6000, "reproduced": LINE})
    assert len(described) == LONGEST_TEXT
    assert described.endswith(f"x\n\n{CARD_CUT}\n\n{LINE}")


def test_a_long_reason_stays_one_short_line():
    described = compose({"card": CARD, "reproduced": "Reproduced: a\nb " + "y" * 900})
    assert len(described.splitlines()[-1]) == 300
    assert replaced(described, reproduced=LINE) == f"{CARD}\n\n{LINE}"


def test_a_review_that_is_too_long_itself_leaves_room_for_the_line():
    gates = "\n".join(f"gate {number}" for number in range(5000))
    described = compose({"review": gates, "card": LONG, "reproduced": LINE})
    assert len(described) <= LONGEST_TEXT
    assert described.endswith(f"{END}\n\n{CARD_CUT}\n\n{LINE}")
    assert "gate" not in replaced(described, review="# new")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (f"{CARD}\n\n{LINE}\n", f"{CARD}\n\n{LINE}"),
        (f"{LINE}\n\n{CARD}\n\nafter", f"{CARD}\n\nafter\n\n{LINE}"),
        (f"{LINE}, old\n\n{CARD}\n\n{LINE}", f"{CARD}\n\n{LINE}"),
        (f"{CARD}\n\n{CARD_CUT}\n\n{LINE}", f"{CARD}\n\n{CARD_CUT}\n\n{LINE}"),
        # Cut at 5,000 characters inside a line, inside that sentence, inside the review.
        (f"{CARD}\n| acco…\n\n{LINE}", f"{CARD}\n\n{CARD_CUT}\n\n{LINE}"),
        (f"{CARD}\n\n… the whole ca…\n\n{LINE}", f"{CARD}\n\n{CARD_CUT}\n\n{LINE}"),
    ],
)
def test_what_was_stored_before_there_were_sections_is_read(stored, expected):
    assert compose(read_sections(stored)) == expected
    for reviewed in (f"{BEGIN}\n{REVIEW}\n{END}\n\n", f"{FRAMED}\n\n"):
        assert read_sections(reviewed + stored)["review"].strip() == REVIEW
        assert replaced(reviewed + stored, review="# new") == f"{NEW}\n\n{expected}"


def test_a_review_that_was_cut_before_its_end_is_replaced():
    stored = f"{BEGIN}\n# Review\n| gate…\n\n{LINE}"
    assert replaced(stored, review="# new") == f"{NEW}\n\n{LINE}"


def test_neither_torch_nor_a_command_comes_with_it():
    script = (
        "import sys, account_tax.reporting.description\n"
        "rooms = ('pipelines', 'review', 'reproduce')\n"
        "heavy = ('torch', *(f'account_tax.{room}' for room in rooms))\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    source = Path(description.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
