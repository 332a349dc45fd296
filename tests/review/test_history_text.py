"""The history as a person reads it."""

from __future__ import annotations

from account_tax.review.history_text import one_line


def test_words_can_not_write_to_the_terminal():
    assert one_line("a\x1b[2J\r\n\tb\u202e c") == "a [2J b c"
