"""The verdict in the version's description: one line, the newest, never too long."""

from account_tax.reproduce.report import describe

LINE = "Reproduced: BITWISE, 2026-11-24T18:00:00Z, run abc"


def test_the_line_stands_at_the_end():
    assert describe("# card\n\ntext\n", LINE, 5000) == f"# card\n\ntext\n\n{LINE}"
    assert describe("", LINE, 5000) == LINE


def test_an_older_line_is_replaced_wherever_it_stands():
    older = describe("# card\n\ntext\n", "Reproduced: DIFFERENT (data), long ago", 5000)
    assert describe(older, LINE, 5000) == f"# card\n\ntext\n\n{LINE}"
    moved = f"Reproduced: DIFFERENT\n\n{older}\n\nafter"
    assert describe(moved, LINE, 5000).count("Reproduced: ") == 1
    assert describe(moved, LINE, 5000).endswith(f"after\n\n{LINE}")


def test_a_full_description_makes_room():
    text = describe("x" * 5000, LINE, 5000)
    assert len(text) == 5000
    assert text.endswith(f"x…\n\n{LINE}")


def test_a_long_reason_stays_one_short_line():
    text = describe("card", "Reproduced: DIFFERENT (code: a\nb " + "y" * 900, 5000)
    assert len(text.splitlines()[-1]) == 300
    assert describe(text, LINE, 5000) == f"card\n\n{LINE}"
