"""One HTML file that needs nothing else: no script, style or picture from elsewhere, and none would be let in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

FILES = Path(__file__).parent


def page(title: str, body: str) -> str:
    """The whole file. Its policy lets a browser run this script and style alone, and fetch nothing, whatever the body holds."""
    style, script = (FILES / "report.css").read_text("utf-8"), (FILES / "report.js").read_text("utf-8")
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    head = (
        f"<meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{policy}\">"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{escape(title)}</title>"
        "<link rel='icon' href='data:,'>"  # or browsers ask for one
    )
    return f"<!doctype html><html lang='en'><head>{head}<style>{style}</style></head><body>{body}<script>{script}</script></body></html>\n"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def section(title: str, *parts: str) -> str:
    """Parts are HTML."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def note(text: str) -> str:
    return f"<p class='soft'>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), marked: Sequence[bool] = ()) -> str:
    """Cells are text; `numbers` are the columns set to the right, `marked` says which rows stand out. The first cell heads its row."""
    kind = [" class='n'" if i in numbers else "" for i in range(max([len(head), *map(len, rows)]))]
    top = "".join(f"<th{kind[i]}>{escape(text)}</th>" for i, text in enumerate(head))
    lines = []
    for number, (first, *others) in enumerate(rows):
        cells = "".join(f"<td{kind[i]}>{escape(text)}</td>" for i, text in enumerate(others, start=1))
        stands_out = bool(marked) and marked[number]
        sign = " <b title='differs'>≠</b>" if stands_out else ""
        lines.append(f"<tr{' class=differs' if stands_out else ''}><th>{escape(first)}{sign}</th>{cells}</tr>")
    return f"<div class='wide'><table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{''.join(lines)}</tbody></table></div>"


def facts(items: Sequence[tuple[str, str, str]]) -> str:
    """(value, what it is, a word more): the numbers that people look at first."""
    boxes = [f"<div><span>{escape(what)}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>" for value, what, more in items]
    return f"<div class='facts'>{''.join(boxes)}</div>"


def bar(percent: float, kind: str = "") -> str:
    """A box's background, filled from the left."""
    return f"<svg class='bar {kind}' viewBox='0 0 100 1' preserveAspectRatio='none' aria-hidden='true'><rect width='{percent:.1f}' height='1'/></svg>"
