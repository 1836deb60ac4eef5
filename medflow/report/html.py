"""Self-contained HTML: styles inlined, pictures as base64, every text escaped, no script, no network."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Sequence
from html import escape

from medflow.report.figure import Figure

STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#222;max-width:72rem}
body{margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:1.8rem 0 .5rem;border-bottom:1px solid #ddd}
p.lead{color:#555;margin:.2rem 0 1rem}figure{margin:1rem 0}figcaption{color:#555;font-size:.85rem}
img{max-width:100%;height:auto}div.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem}
th,td{text-align:left;padding:.22rem .7rem;border-bottom:1px solid #e5e5e5;vertical-align:top}th{background:#f5f5f5}
td.number{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em;word-break:break-all}
.facts td.number{text-align:left}.facts th{font-weight:normal;white-space:nowrap}
.good{color:#00694a}.bad{color:#a33b00}ul{padding-left:1.2rem}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}th{background:#262626}th,td{border-color:#333}
h2{border-color:#333}p.lead,figcaption{color:#aaa}img{background:#fff}.good{color:#4cc38a}.bad{color:#ff9a5c}a{color:#7db7ff}}
"""


class Html(str):
    """Markup that is safe to put in a page. Everything else is escaped where it enters."""

    __slots__ = ()


def page(title: str, lead: str, *sections: Html) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n{joined(sections)}\n</body></html>\n'
    )


def section(title: str, *parts: Html) -> Html:
    """A heading and what stands below it; nothing at all where that is empty."""
    body = joined(parts)
    return Html(f"<section><h2>{escape(title)}</h2>{body}</section>\n") if body else Html("")


def joined(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def text(words: str) -> Html:
    return Html(f"<p>{escape(words)}</p>")


def bullets(lines: Sequence[str]) -> Html:
    return Html(f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>") if lines else Html("")


def mark(words: str, *, good: bool) -> Html:
    """A verdict in words, coloured; the words alone must say it."""
    return Html(f'<p class="{"good" if good else "bad"}"><strong>{escape(words)}</strong></p>')


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Numbers are right-aligned with four decimals, NaN is a dash, everything else is escaped text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    if not body:
        return Html("")
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Name and value, one a line, those without a value left out."""
    present = [(name, value) for name, value in pairs if value not in (None, "")]
    body = "".join(f"<tr><th>{escape(name)}</th>{_cell(value)}</tr>" for name, value in present)
    return Html(f'<div class="wide"><table class="facts"><tbody>{body}</tbody></table></div>' if body else "")


def figure(picture: Figure) -> Html:
    """A picture with its title and a link that saves the numbers behind it."""
    image = base64.b64encode(picture.png).decode()
    data = base64.b64encode(picture.csv.encode()).decode()
    title, name = escape(picture.title, quote=True), escape(picture.name, quote=True)
    return Html(
        f'<figure><img alt="{title}" src="data:image/png;base64,{image}"><figcaption>{title} · '
        f'<a download="{name}.csv" href="data:text/csv;base64,{data}">numbers (CSV)</a></figcaption></figure>'
    )


def figures_of(page: str) -> tuple[Html, ...]:
    """The figures of a page that this module wrote, to stand in another."""
    return tuple(Html(found) for found in re.findall("<figure>.*?</figure>", page, re.DOTALL))


def _cell(cell: object) -> str:
    if isinstance(cell, Html):
        return f"<td>{cell}</td>"
    if isinstance(cell, bool):
        return f"<td>{'yes' if cell else 'no'}</td>"
    if isinstance(cell, int):
        return f'<td class="number">{cell:,}</td>'
    if isinstance(cell, float):
        return f'<td class="number">{"–" if math.isnan(cell) else f"{cell:.4f}"}</td>'
    return f"<td>{escape('' if cell is None else str(cell))}</td>"
