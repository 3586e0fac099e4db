"""One HTML file that needs nothing else: no script, style or picture from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

FILES = Path(__file__).parent


def page(title: str, body: str) -> str:
    style, script = (FILES / "report.css").read_text("utf-8"), (FILES / "report.js").read_text("utf-8")
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title>"
    icon = "<link rel='icon' href='data:,'>"  # or browsers ask for one
    return f"<!doctype html><html lang='en'><head>{head}{icon}<style>{style}</style></head><body>{body}<script>{script}</script></body></html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), marked: Sequence[bool] = ()) -> str:
    """Cells are text; `numbers` are the columns set to the right, `marked` says which rows stand out."""
    kind = [" class='n'" if i in numbers else "" for i in range(len(head))]
    top = "".join(f"<th{kind[i]}>{html.escape(text)}</th>" for i, text in enumerate(head))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind[i]}>{html.escape(text)}</td>" for i, text in enumerate(row))
        lines.append(f"<tr{' class=differs' if marked and marked[number] else ''}>{cells}</tr>")
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """(what, value): the numbers that people look at first."""
    return (
        "<div class='facts'>" + "".join(f"<div><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>" for what, value in pairs) + "</div>"
    )
