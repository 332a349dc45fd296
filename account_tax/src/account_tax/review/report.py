"""The review as documents: a page, a Markdown file, and the digest in the version's description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from account_tax.reporting.markdown import escape_cell, format_number

from .figures import MOST_CONFUSED, draw_figures, draw_history
from .gates import judge
from .statistics import RESAMPLES, SEED

TEMPLATES = Path(__file__).with_name("templates")


def percent(value: float) -> str:
    """Return 0.9167 as 91.7%."""
    return f"{value:.1%}"


def points(value: float) -> str:
    """Return a difference of shares in points: 0.0125 as +1.2 points."""
    return f"{100 * value:+.1f} points"


def p_value(value: float) -> str:
    """Return a probability, the very small ones as a bound."""
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}"


FORMATS: dict[str, Callable[[Any], str]] = {
    "pct": percent,
    "points": points,
    "number": format_number,
    "short": lambda value: f"{value:.2f}",
    "signed": lambda value: f"{value:+.4f}",
    "signed_short": lambda value: f"{value:+.2f}",
    "count": lambda value: f"{value:,}",
    "pvalue": p_value,
    "cell": escape_cell,
}


def render_html(findings: Mapping[str, Any]) -> str:
    """Return the report as one page that needs nothing beside it."""
    figures = {name: Markup(svg) for name, svg in draw_figures(findings).items()}
    return _render("report.html.j2", findings, figures=figures, most_confused=MOST_CONFUSED)


def render_markdown(findings: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    return _render("report.md.j2", findings)


def describe_review(findings: Mapping[str, Any], experiment_id: str) -> str:
    """Return the digest for the version's description: summary, gates, link to the report."""
    return _render("description.md.j2", findings, experiment_id=experiment_id)


def render_comparison(findings: Mapping[str, Any]) -> dict[str, str]:
    """Return the report on runs side by side by its file's name, as a page and as Markdown."""
    others = [
        run["title"]
        for run in findings["runs"]
        if run["as_good"] and run["title"] != findings["best"]
    ]
    words = f"Too close to tell from it on these rows: {', '.join(others)}."
    more = {"as_good": words if others else "No other's interval reaches its own."}
    figure = Markup(draw_history(findings["runs"]))
    return {
        "report.html": _fill("compare.html.j2", figure=figure, **findings, **more),
        "report.md": _fill("compare.md.j2", **findings, **more),
    }


def _render(template: str, findings: Mapping[str, Any], **more: Any) -> str:
    weakest = sorted(
        findings["classes"], key=lambda each: (not each["rows"], each["challenger"]["f1"]["value"])
    )
    sentences = _sentences(findings)
    return _fill(template, **{**findings, "classes": weakest}, **sentences, **more)


def _fill(template: str, **values: Any) -> str:
    page = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=page,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FORMATS)
    constants = {"resamples": RESAMPLES, "seed": SEED}
    return environment.get_template(template).render(**FORMATS, **constants, **values)


def _sentences(findings: Mapping[str, Any]) -> dict[str, str]:
    """Return what the numbers come to, in words."""
    low, high = (findings["difference"]["accuracy"][end] for end in ("low", "high"))
    comparison = "too close to tell which is better on these rows"
    if low > 0:
        comparison = "more than chance explains"
    elif high < 0:
        comparison = "worse, and more than chance explains"
    at = findings["calibration"]["challenger"]
    target = percent(at["target_precision"])
    coverage = f"No score lets lines be filed without a person at a target precision of {target}."
    if at["threshold"] is not None or at["account_thresholds"]:
        right = "no line" if at["precision"] is None else percent(at["precision"])
        coverage = (
            f"At its threshold for {target} precision, {percent(at['coverage'])} of the "
            f"lines need no person, and {right} of those are right."
        )
    verdict = f"{findings['worse']} {judge(findings['gates'])[1]}".strip()
    return {"verdict": verdict, "comparison": comparison, "coverage_sentence": coverage}
