"""A report as one HTML file: pictures within it, nothing fetched from anywhere."""

import base64
import html
from collections.abc import Sequence

from tuning.document import Block, Command, Picture, Section, Table, Text

STYLE = """
:root { --ink: #1d252c; --quiet: #5c6873; --line: #dde3e8; --tint: #f4f7f9; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p.subtitle { color: var(--quiet); margin: 0 0 1.6rem; }
p.strong { background: var(--tint); border-left: 4px solid var(--accent); padding: .8rem 1rem;
  margin: 1rem 0; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1rem; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0 1.2rem; min-width: 60%; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th { text-align: left; color: var(--quiet); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: .28rem .9rem .28rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
table.numeric td:not(:first-child), table.numeric th:not(:first-child) { text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; padding-left: 1.2rem; padding-right: 0; }
figure { margin: 1rem 0 1.8rem; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--quiet); font-size: .88rem; margin-top: .3rem; }
pre { background: var(--tint); padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; border-radius: 4px; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file.

    Args:
        title: the question.
        subtitle: where it comes from.
        sections: what is told.
    """
    anchors = [(f"s{number}", section) for number, section in enumerate(sections, 1)]
    contents = "".join(f'<a href="#{anchor}">{html.escape(s.title)}</a>' for anchor, s in anchors)
    body = "".join(
        f'<section id="{anchor}"><h2>{html.escape(s.title)}</h2>{"".join(map(_block, s.blocks))}</section>'
        for anchor, s in anchors
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="subtitle">{html.escape(subtitle)}</p>'
        f"<nav>{contents}</nav>{body}</main></body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Text(text, strong):
            return f"<p{' class=strong' if strong else ''}>{html.escape(text)}</p>"
        case Command(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
        case Picture(png, caption):
            data = base64.b64encode(png).decode()
            text = html.escape(caption)
            shown = f'<img alt="{text}" src="data:image/png;base64,{data}">'
            return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"
        case Table(header, rows, caption, numeric):
            head = "".join(f"<th>{html.escape(word)}</th>" for word in header)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(str(word))}</td>" for word in row) + "</tr>"
                for row in rows
            )
            above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
            kind = ' class="numeric"' if numeric else ""
            inner = f"{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
            return f'<div class="scroll"><table{kind}>{inner}</table></div>'
