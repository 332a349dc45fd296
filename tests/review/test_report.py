import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from account_tax.review.command import show
from account_tax.review.findings import find
from account_tax.review.gates import judge
from account_tax.review.report import describe_review, percent, render_html, render_markdown

from .conftest import LABELS, RUN, make_answers

VOID = {"meta", "br", "path", "use", "rect", "stop", "link"}


class Page(HTMLParser):
    """The text of a page, its tags, and whether each one that opens closes."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.open, self.attributes = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def numbers(findings):
    """Return the numbers a reader looks for, as the report writes them."""
    for scores in [*findings["models"].values()]:
        yield from (percent(scores["accuracy"][end]) for end in ("value", "low", "high"))
        yield from (f"{scores['f1'][end]:.4f}" for end in ("value", "low", "high"))
    for end in ("value", "low", "high"):
        yield f"{100 * findings['difference']['accuracy'][end]:+.1f} points"
        yield f"{findings['difference']['f1'][end]:+.4f}"
    for each in findings["classes"]:
        yield from (f"{each['challenger'][metric]['low']:.2f}" for metric in ("recall", "f1"))
        yield f"{each['f1_difference']['value']:+.2f}"
    for each in findings["calibration"].values():
        yield f"{each['expected_calibration_error']:.4f}"
        yield percent(each["coverage"])
    for part in findings["slices"]["region"]:
        yield percent(part["challenger"]["accuracy"])
        yield f"{part['reference']['f1']:.4f}"
    for each in findings["disagreements"]:
        yield str(each["row_id"])
        yield f"{each['challenger_score']:.4f}"
    for each in findings["gates"]:
        yield from filter(None, (each["name"], each["found"], each["wanted"]))
    yield from ("1.30 MB", "512", "61 s", "90 s", "seoul", "busan", "16", "2.16")


@pytest.mark.parametrize("which", ["findings", "first_findings"])
def test_every_number_is_on_the_page(which, request):
    findings = request.getfixturevalue(which)
    page = Page(render_html(findings))
    assert page.open == []
    wanted = [each for each in numbers(findings) if which == "findings" or each != "2.16"]
    assert [each for each in wanted if each not in page.text] == []


def test_every_number_is_in_the_markdown(findings):
    text = render_markdown(findings).replace("\\|", "|")
    assert [each for each in numbers(findings) if each not in text] == []


def test_every_table_of_the_markdown_has_equal_rows(findings, first_findings):
    for each in (findings, first_findings):
        tables = re.findall(r"(?:^\|.*\n)+", render_markdown(each), re.M)
        assert len(tables) >= 8
        for table in tables:
            rows = [re.sub(r"\\\|", "", row) for row in table.splitlines()]
            assert len({row.count("|") for row in rows}) == 1, table
            assert set(rows[1]) == {"|", "-", " "}


def test_the_page_stands_alone(findings):
    page = Page(render_html(findings))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
    tags = {tag for tag, _, _ in page.attributes}
    assert "svg" in tags
    assert not tags & {"script", "link", "img", "iframe"}
    assert "@import" not in render_html(findings)


def test_ids_stand_once_or_mean_the_same(findings):
    """A page of several figures: an id that two of them have must name the same shape."""
    html = render_html(findings)
    ids = re.findall(r' id="([^"]+)"', html)
    for repeated in {each for each in ids if ids.count(each) > 1}:
        bodies = re.findall(rf'<[^>]* id="{re.escape(repeated)}"[^>]*>', html)
        assert len(set(bodies)) == 1, repeated


def test_names_are_text_and_no_markup(findings):
    html = render_html(findings)
    assert "<tax>" not in html
    assert "fees &amp; &lt;tax&gt; | [x](javascript:y) `" in html
    markdown = render_markdown(findings)
    assert r"fees &amp; &lt;tax&gt; \| \[x\](javascript:y) \`" in markdown
    assert "[x](" not in markdown.replace(r"\[x\]", "")
    for label in LABELS:
        assert label in Page(html).text


def test_colours_follow_the_readers_theme(findings):
    html = render_html(findings)
    assert "prefers-color-scheme: dark" in html
    figures = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert "var(--ink)" in figures
    assert "#30343a" not in figures


@pytest.mark.parametrize(
    ("statuses", "title", "colour"),
    [
        (["passed", "passed"], "gates passed", "good"),
        (["passed", "failed", "not measured"], "gates failed", "bad"),
        (["passed", "not measured"], "gates not measured", "unknown"),
    ],
)
def test_what_was_not_measured_has_words_and_a_colour_of_its_own(findings, statuses, title, colour):
    gates = [
        gate | {"status": status} for gate, status in zip(findings["gates"], statuses, strict=False)
    ]
    shown = findings | {"gates": gates, "outcome": judge(gates)[0]}
    assert f'class="summary" style="--verdict: var(--{colour})"' in render_html(shown)
    assert describe_review(shown, "0").startswith(f"# Review: {title}\n")


def test_rare_accounts_are_named(findings):
    words = "With fewer than 3 different texts, so in train only: rent (1)."
    for render in (render_html, render_markdown):
        assert words in render(findings | {"rare": words})


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_an_account_without_a_row_is_last_and_not_measured(evidence, gates, render):
    ours = evidence.answers["challenger"]
    truth = np.where(evidence.truth == 0, 1, evidence.truth)  # none is of the first account
    found = find(replace(evidence, truth=truth), gates) | RUN
    assert ours.predicted.min() == 0
    text = render(found)
    (accounts,) = re.findall(r"F1, .*?(?:</table>|\n\n)", text, re.S)
    lines = [line for line in accounts.split("\n") if "n/a" in line]
    assert lines
    assert "0.00" not in "".join(lines)
    places = [accounts.find(label) for label in ("통신비", "접대비")]
    assert 0 < places[0] < places[1]


def test_what_did_not_pass_comes_first(findings):
    page = Page(render_html(findings)).text
    failed = [gate["name"] for gate in findings["gates"] if gate["status"] != "passed"]
    if failed:
        assert f"{len(failed)} of {len(findings['gates'])} gates failed" in page[:600]
    else:
        assert f"All {len(findings['gates'])} gates passed" in page[:600]


def test_the_description_links_to_the_report(findings):
    digest = describe_review(findings, "1")
    assert f"runs/{findings['run_id']}/artifacts/review/report.html" in digest


def test_worse_is_the_headline_whatever_the_gates_say(evidence, gates, capsys):
    answers = {"challenger": make_answers(0.6, 1), "champion": make_answers(0.95, 2)}
    off = dict.fromkeys(gates) | {"class_floor_rows": 20, "cold_load_verified": True}
    findings = find(replace(evidence, answers=answers), off) | RUN
    assert findings["outcome"] == "passed"
    headline = "Worse than account-tax version 2 (champion) in accuracy and macro-F1, and more than"
    page = render_html(findings)
    assert headline in Page(page).text[:600]
    assert "--verdict: var(--bad)" in page
    assert f"**{headline}" in render_markdown(findings)
    assert describe_review(findings, "1").startswith("# Review: worse than version 2, gates")
    show(findings)
    assert f"mind this: {headline}" in capsys.readouterr().out


def test_the_default_gates_ask_to_be_no_worse_than_n_grams(evidence, gates):
    better = evidence.baselines | {"tfidf": make_answers(0.99, 4).predicted}
    findings = find(replace(evidence, baselines=better), gates)
    (gate,) = (g for g in findings["gates"] if g["name"] == "tfidf_accuracy_change_lower_bound")
    assert gate["status"] == "failed"
    assert gate["why"].startswith("Against TF-IDF and logistic regression, the change of accuracy")
