"""The words and numbers of every kind of page, held against text files in tests/golden.

A page that changes is a decision: `MEDFLOW_WRITE_GOLDEN=1 pytest tests/test_golden_pages.py` writes it down, and the
diff shows what a reader will see. Left out: styles, pictures and the data behind them, digests, versions.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import handmade
import pytest
import scored
from test_checks import NO_PIXELS, SPOILED, spoiled
from test_report import LOG

from medflow import evaluate as evaluating
from medflow import report
from medflow.checks import check
from medflow.config.sections import EvaluateConfig, PromoteConfig, ValidateConfig
from medflow.lineage import Ancestor
from medflow.package import card_page
from medflow.promote import promote
from medflow.records import Challenge, Choice, Finding, Findings, PackageFacts, Parity, Promotion, Verdict
from medflow.report.samples import samples_page

GOLDEN = Path(__file__).parent / "golden"


class Outline(HTMLParser):
    """A page as lines: headings marked, a line for each paragraph, item and table row, pictures by their title."""

    LINES = frozenset({"h1", "h2", "p", "li", "tr", "figcaption", "figure"})
    CELLS = frozenset({"td", "th"})
    SILENT = frozenset({"style", "title", "svg"})

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = [""]
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self.SILENT
        if tag in self.LINES:
            self.lines.append({"h1": "# ", "h2": "## ", "li": "- "}.get(tag, ""))
        elif tag in self.CELLS and self.lines[-1]:
            self.lines[-1] += " | "
        elif tag in ("img", "svg"):
            self.lines.append(f"[picture: {dict(attrs).get('alt') or dict(attrs).get('aria-label') or ''}]")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self.SILENT

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.lines[-1] += " ".join(data.split()) + (" " if data[-1:].isspace() and data.strip() else "")


def outline(page: str) -> str:
    reader = Outline()
    reader.feed(page)
    return steady("\n".join(line.rstrip() for line in reader.lines if line.strip()))


def steady(text: str) -> str:
    """Without what changes from one machine or release to the next."""
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b", "<digest>", text)
    text = re.sub(r"(Great Expectations) [\d.]+\d", r"\1 <version>", text)
    return re.sub(r"[\d,]+ bytes", "<size> bytes", text) + "\n"


def held(name: str, text: str) -> None:
    path = GOLDEN / f"page_{name}.txt"
    if os.environ.get("MEDFLOW_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return scored.data(tmp_path_factory.mktemp("data") / "pixels", without_mask=(3, 4))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def evaluated(bundle, rows):
    return evaluating.evaluate(bundle, *rows, EvaluateConfig(resamples=100), "test")


@pytest.fixture(scope="module")
def card(bundle):
    parity = Parity(against="torch", max_abs_difference=1.5e-7, decisions_agree=0.995, images=200)
    # The size of the file is that of what onnx writes, which its version changes.
    facts = {"training": LOG, "parity": parity, "notes": ("two layers stay float",), "bytes": 2_500_000}
    return bundle.card.model_copy(update=facts)


def test_report_of_a_run(rows, bundle, card, evaluated) -> None:
    manifest, _ = rows
    verdict = {"metric": "auroc", "latency_ms": 5.0}
    choice = Choice(
        chosen="int8",
        verdicts=(
            Verdict(variant="onnx", chosen=False, value=0.9, loss=0.0, bytes=10**6, reason="the reference", **verdict),
            Verdict(variant="int8", chosen=True, value=0.895, loss=0.005, bytes=10**5, reason="smaller", **verdict),
        ),
    )
    told = Finding(check="blank", severity="warning", message="nothing to see", count=1, examples=("a.png",))
    made = {"artifact": "pixels", "content": "a" * 64, "step": "ingest", "made_in": "run0", "cached": True}
    run = report.RunReport(
        title="tiny, run 1", lead="generated",
        parts={"train": manifest.take(range(20)), "test": manifest.take(range(20, 40))},
        findings=Findings(images=41, quarantined=1, findings=(told,)), cards=[card], validation=[evaluated.evaluation],
        selection=choice, choice=choice, evaluation=evaluated.evaluation, predictions=evaluated.predictions,
        samples_page=samples_page(evaluating.samples(bundle, *rows)), promotion=decided(evaluated),
        lineage=[Ancestor(**made, came_from=())],
    )  # fmt: skip
    held("run", outline(report.run_page(run)))


def decided(evaluated: evaluating.Evaluated) -> Promotion:
    facts = PackageFacts(tag="t:1", file="t.bento", content_digest="new", bundle_digest="b", bytes=1, bento_sha256="")
    incumbent = Challenge(stage="production", model_version="1", package_digest="old")
    made, said = evaluated.evaluation, evaluated.predictions
    return promote(made, said, made, said, facts, incumbent, PromoteConfig(resamples=100), scored.unseen(said))


def test_page_of_a_model(card) -> None:
    held("model", outline(report.bundle_page(card)))


def test_page_of_an_evaluation(evaluated) -> None:
    held("evaluation", outline(report.evaluation_page(evaluated.evaluation, evaluated.predictions)))


def test_model_card(bundle, card, evaluated) -> None:
    shown = card_page(type(bundle)(root=bundle.root, card=card), evaluated.evaluation)
    held("model_card", steady(shown))


def test_page_of_the_checks() -> None:
    changes, _ = SPOILED["duplicate"]
    checked = check(spoiled(changes | {9: {"sex": "<b>X</b>"}, 10: NO_PIXELS}), ValidateConfig())
    held("validation", outline(checked.page))


def test_a_number_that_changes_is_seen(card) -> None:
    other = card.model_copy(update={"parameters": card.parameters + 1})
    assert outline(report.bundle_page(other)) != outline(report.bundle_page(card))
