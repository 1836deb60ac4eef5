"""What `validate` found, as one HTML page that needs no network: styles inlined, charts as SVG, text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from medflow.checks.expectations import Outcome, version
from medflow.checks.rules import ADVICE, severity_of
from medflow.config.sections import ValidateConfig
from medflow.records import Finding, Findings, Manifest

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7ab5; --error: #b3261e; --warning: #9a6700; --info: #57606a;
        --pass: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --bar: #7aa7dd; --error: #ff8a80; --warning: #e3b341; --info: #a0a8b0;
        --pass: #56d364; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
td { overflow-wrap: break-word; }
.error { color: var(--error); font-weight: 600; } .warning { color: var(--warning); font-weight: 600; }
.info { color: var(--info); } .pass { color: var(--pass); } .fail { color: var(--error); font-weight: 600; }
svg { width: 100%; max-width: 34rem; height: auto; display: block; } svg text { font-size: 11px; fill: currentColor; }
svg rect { fill: var(--bar); } svg line { stroke: currentColor; stroke-width: .6; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; }
"""
BINS = 40
WIDTH, HEIGHT, MARGIN = 460, 170, 34


def render(
    manifest: Manifest, kept: Manifest, findings: Findings, outcomes: Sequence[Outcome], config: ValidateConfig
) -> str:
    """The page as one string. ``manifest`` is what was checked, ``kept`` what is left."""
    title = escape(f"{manifest.card.title}: data checks")
    failed = sum(not outcome.success for outcome in outcomes)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{findings.images} images checked, {findings.quarantined} left out, {len(kept)} kept.
{_off(config)}</p>
<h2>Findings</h2>
{_findings(findings.findings)}
<h2>Classes</h2>
{_classes(manifest, kept)}
<h2>Sizes and brightness of all readable images</h2>
{_charts(manifest)}
<h2>Expectations</h2>
<p>Great Expectations {escape(version())}: {len(outcomes)} expectations on {findings.images} rows, {failed} not met.</p>
{_outcomes(outcomes, config)}
</body></html>
"""


def _off(config: ValidateConfig) -> str:
    off = [name for name in ADVICE if severity_of(name, config) == "off"]
    return f"Not checked (off): {escape(', '.join(off))}." if off else "No check is off."


def _findings(findings: Iterable[Finding]) -> str:
    rank = ("error", "warning", "info")
    rows = [
        (
            f'<td class="{item.severity}">{item.severity}</td>',
            _text(item.check),
            _number(item.count),
            _text(item.message),
            _text(", ".join(item.examples)),
        )
        for item in sorted(findings, key=lambda item: rank.index(item.severity))
    ]
    return _table(("severity", "check", "#images", "what", "examples"), rows) if rows else "<p>Nothing was found.</p>"


def _classes(manifest: Manifest, kept: Manifest) -> str:
    columns = [name for head in manifest.card.heads for name in head.columns()]
    counts = [(name, _ones(manifest, name), _ones(kept, name)) for name in columns]
    if manifest.card.mask_head():
        counts.append(("with a usable mask", int(manifest.has_mask().sum()), int(kept.has_mask().sum())))
    rows = [
        (
            _text(name),
            _number(before),
            _number(after),
            f'<td class="number">{100 * after / max(len(kept), 1):.1f} %</td>',
        )
        for name, before, after in counts
    ]
    return _table(("label", "#checked", "#kept", "#share of kept"), rows)


def _ones(manifest: Manifest, column: str) -> int:
    return int((manifest.column(column) == 1).sum())


def _outcomes(outcomes: Iterable[Outcome], config: ValidateConfig) -> str:
    rows = [
        (
            '<td class="pass">met</td>' if item.success else '<td class="fail">not met</td>',
            _text(item.rule.check),
            f'<td class="{severity_of(item.rule.check, config)}">{severity_of(item.rule.check, config)}</td>',
            _text(item.rule.expectation),
            _text(", ".join(f"{name} {value}" for name, value in item.rule.arguments.items())),
            _number(item.evaluated),
            _number(len(item.rows)),
            _text(", ".join(item.observed)),
        )
        for item in outcomes
    ]
    heads = (
        "result",
        "check",
        "severity",
        "expectation",
        "arguments",
        "#evaluated",
        "#unexpected",
        "unexpected values",
    )
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are finished; a head that starts with # is of a column of numbers."""
    top = "".join(
        f'<th class="number">{escape(head[1:])}</th>' if head.startswith("#") else f"<th>{escape(head)}</th>"
        for head in heads
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _text(value: str) -> str:
    return f"<td>{escape(value)}</td>"


def _number(value: int) -> str:
    return f'<td class="number">{value}</td>'


# -- charts --------------------------------------------------------------------------------------


def _charts(manifest: Manifest) -> str:
    facts = {name: _measured(manifest, name) for name in ("width", "height", "mean", "std")}
    figures = (
        _figure("Width, pixels", facts["width"]),
        _figure("Height, pixels", facts["height"]),
        _figure("Mean gray value, 0 to 255", facts["mean"]),
        _figure("Standard deviation of gray values", facts["std"]),
    )
    return f'<div class="charts">{"".join(figures)}</div>'


def _measured(manifest: Manifest, name: str) -> np.ndarray:
    values = manifest.table.column(name).drop_null().to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def _figure(caption: str, values: np.ndarray) -> str:
    if not len(values):
        return f"<figure><figcaption>{escape(caption)}: none measured</figcaption></figure>"
    low, median, high = float(values.min()), float(np.median(values)), float(values.max())
    summary = f"{caption}: {low:.4g} to {high:.4g}, median {median:.4g}"
    return f"<figure><figcaption>{escape(summary)}</figcaption>{_histogram(values, summary)}</figure>"


def _histogram(values: np.ndarray, label: str) -> str:
    """Counts in equal bins. The axis names its ends and the fullest bin's count."""
    counts, edges = np.histogram(values, bins=BINS)
    across, up = (WIDTH - 2 * MARGIN) / BINS, HEIGHT - 2 * MARGIN
    floor = HEIGHT - MARGIN
    bars = "".join(
        f'<rect x="{MARGIN + place * across:.1f}" y="{floor - up * count / counts.max():.1f}" '
        f'width="{across - 1:.1f}" height="{up * count / counts.max():.1f}">'
        f"<title>{edges[place]:.4g} to {edges[place + 1]:.4g}: {count} images</title></rect>"
        for place, count in enumerate(counts.tolist())
        if count
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">{bars}'
        f'<line x1="{MARGIN}" y1="{floor}" x2="{WIDTH - MARGIN}" y2="{floor}"/>'
        f'<text x="{MARGIN}" y="{floor + 16}">{edges[0]:.4g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{floor + 16}" text-anchor="end">{edges[-1]:.4g}</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 10}">{counts.max()} images in the fullest of {BINS} bins</text></svg>'
    )
