"""Is this data fit to learn from? Great Expectations on the manifest, then severity decides.

Every check is one or more expectations on the manifest and on facts that ingest measured (``rules``), so
that what stops a run, what leaves an image out and what the page shows can never disagree.

========  =====================================================================================
error     the run stops with ChecksFailed
warning   the rows are left out of ``kept``, and counted. Of copies one stays, the smallest image_id
          of those not left out for another reason. A mismatched mask costs the image its mask only
info      told
off       not evaluated
========  =====================================================================================

Whatever the severity of ``unreadable``, short of error, an image without pixels cannot be kept: with ``info``
and ``off`` it is left out as well. What breaks the manifest's own contract (``structure``) is always an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas

from medflow.checks.expectations import Outcome, evaluate
from medflow.checks.facts import Facts, measure
from medflow.checks.page import render
from medflow.checks.quarantine import quarantine
from medflow.checks.rules import ADVICE, STRUCTURE, rules, severity_of
from medflow.config.sections import ValidateConfig
from medflow.errors import ChecksFailed
from medflow.records import Finding, Findings, Manifest

__all__ = ["Checked", "check", "examine"]

EXAMPLES = 5
Told = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Checked:
    findings: Findings
    kept: Manifest
    """The manifest without what was quarantined; every row has pixels."""
    page: str
    """One self-contained HTML page."""


def check(manifest: Manifest, config: ValidateConfig) -> Checked:
    """Check a manifest to learn from, as ingest made it. Raises ChecksFailed: see the table above, and where too
    little is left, or nothing of a class."""
    checked = examine(manifest, config)
    _stop_on_empty_class(manifest, checked.kept)
    return checked


def examine(manifest: Manifest, config: ValidateConfig) -> Checked:
    """The same for a manifest to judge by, which may lack a class."""
    if not len(manifest):
        raise ChecksFailed(f"{manifest.card.name} has no images", hint="look at the source: `medflow show` names it")
    facts = measure(manifest, config)
    outcomes = evaluate(facts.frame, rules(manifest.card, config))
    found = _findings(outcomes, facts, config)
    told = (*manifest.findings, *found)
    _stop_on_errors(told)
    kept = quarantine(manifest, facts, _failing_rows(outcomes), config)
    _stop_on_loss(manifest, kept, found, config)
    findings = Findings(findings=told, images=len(manifest), quarantined=len(manifest) - len(kept))
    return Checked(findings=findings, kept=kept, page=render(manifest, kept, findings, outcomes, config))


def _failing_rows(outcomes: tuple[Outcome, ...]) -> dict[str, np.ndarray]:
    """Check → sorted row numbers that fail any of its expectations; checks that pass are left out."""
    failing: dict[str, list[np.ndarray]] = {}
    for outcome in outcomes:
        if not outcome.success:
            failing.setdefault(outcome.rule.check, []).append(outcome.rows)
    return {name: np.unique(np.concatenate(rows)) for name, rows in failing.items()}


def _findings(outcomes: tuple[Outcome, ...], facts: Facts, config: ValidateConfig) -> tuple[Finding, ...]:
    """One finding for each check that failed, in the order of the rules."""
    return tuple(
        Finding(
            check=name,
            severity=cast(Told, severity_of(name, config)),  # rules that are off were not evaluated
            message="; ".join(dict.fromkeys(item.rule.message for item in outcomes if _failed(item, name))),
            count=len(rows),
            examples=_examples(name, rows, outcomes, facts),
        )
        for name, rows in _failing_rows(outcomes).items()
    )


def _failed(outcome: Outcome, name: str) -> bool:
    return outcome.rule.check == name and not outcome.success


def _examples(name: str, rows: np.ndarray, outcomes: tuple[Outcome, ...], facts: Facts) -> tuple[str, ...]:
    """The first few failing images by id, with the value that fails where one column tells it."""
    columns = {row: item.rule.shown for item in outcomes if _failed(item, name) for row in item.rows.tolist()}
    image_ids = facts.frame["image_id"].iloc[rows].astype(object)
    labels = image_ids.where(image_ids.notna(), [f"row {row}" for row in rows]).tolist()
    first = sorted(zip(labels, rows.tolist(), strict=True))[:EXAMPLES]
    return tuple(_example(label, facts.frame, row, columns[row]) for label, row in first)


def _example(label: str, frame: pandas.DataFrame, row: int, column: str) -> str:
    return f"{label} ({column} {frame[column].iloc[row]})" if column else label


def _stop_on_errors(findings: tuple[Finding, ...]) -> None:
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise ChecksFailed("; ".join(_sentence(finding) for finding in errors), hint=_advice(errors[0].check))


def _sentence(finding: Finding) -> str:
    examples = f", for example {', '.join(finding.examples)}" if finding.examples else ""
    return f"check {finding.check} failed for {finding.count} images: {finding.message}{examples}"


def _advice(name: str) -> str:
    if name == STRUCTURE:
        return "the dataset's listing or ingest is wrong, not the images: correct it and ingest again"
    if name not in ADVICE:
        return "correct the dataset's files or tables"
    return f"{ADVICE[name]}, or set validate.{name}=warning to go on without those images"


def _stop_on_loss(manifest: Manifest, kept: Manifest, found: tuple[Finding, ...], config: ValidateConfig) -> None:
    lost = len(manifest) - len(kept)
    if lost <= config.max_quarantined * len(manifest):
        return
    causes = ", ".join(f"{item.check} {item.count}" for item in found if item.severity == "warning")
    raise ChecksFailed(
        f"{lost} of {len(manifest)} images would be left out ({causes or 'unreadable'}), "
        f"more than validate.max_quarantined={config.max_quarantined:g} allows",
        hint="look at the source; if the loss is meant, raise validate.max_quarantined",
    )


def _stop_on_empty_class(manifest: Manifest, kept: Manifest) -> None:
    """Every label of the first label head, or the mask where there is none, must have an image left."""
    head = manifest.card.label_head()
    if head is None:
        before, after = {"mask": int(manifest.has_mask().sum())}, {"mask": int(kept.has_mask().sum())}
    else:
        before, after = _images_by_label(manifest, head.columns()), _images_by_label(kept, head.columns())
    empty = [name for name, images in after.items() if images == 0]
    if empty:
        counts = ", ".join(f"{name} {before[name]}" for name in empty)
        raise ChecksFailed(
            f"no image is left of {', '.join(empty)} (before checks: {counts})",
            hint="look at the source for that class, or loosen the check that left its images out",
        )


def _images_by_label(manifest: Manifest, columns: tuple[str, ...]) -> dict[str, int]:
    return {name: int((manifest.column(name) == 1).sum()) for name in columns}
