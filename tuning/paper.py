"""A report as a PDF of A4 pages, set by matplotlib alone."""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import image
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from tuning.document import Block, Command, Picture, Section, Table, Text

WIDTH, HEIGHT = 8.27, 11.69  # inches
LEFT, TOP, BOTTOM = 0.85, 0.8, 0.8
MEASURE = WIDTH - 2 * LEFT
INK, QUIET, LINE, TINT, ACCENT = "#1d252c", "#5c6873", "#dde3e8", "#f4f7f9", "#1f6f8b"
LEAST, MOST = 4, 8  # pages of a report, if that can be had

Drawing = Callable[[Figure, float], None]  # at a height in inches from the top of the page


@dataclass(frozen=True)
class Piece:
    """Something that is not divided between pages: how high it is, in inches, and how it is drawn."""

    height: float
    draw: Drawing


def write(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> int:
    """Print a report.

    Args:
        path: of the PDF.
        title: the question.
        subtitle: where it comes from.
        sections: they follow each other, and begin a page each where there would be few pages otherwise.

    Returns:
        The number of pages.
    """
    groups = [list(_section(section)) for section in sections]
    groups[0] = [*_title(title, subtitle), *groups[0]]
    pages = _packed([piece for group in groups for piece in group])
    apart = [page for group in groups for page in _packed(group)]
    if len(pages) < LEAST and len(apart) <= MOST:
        pages = apart
    with PdfPages(path, metadata={"Title": title}) as pdf:
        for number, pieces in enumerate(pages, 1):
            figure = Figure(figsize=(WIDTH, HEIGHT))
            y = TOP
            for piece in pieces:
                piece.draw(figure, y)
                y += piece.height
            _text(figure, LEFT, HEIGHT - 0.5, textwrap.shorten(subtitle, 105, placeholder=" ..."), 7.5, QUIET)
            _text(figure, WIDTH - LEFT, HEIGHT - 0.5, f"{number} / {len(pages)}", 7.5, QUIET, ha="right")
            pdf.savefig(figure)
    return len(pages)


def _packed(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces one below the other, page after page."""
    pages, room = [[]], HEIGHT - TOP - BOTTOM
    used = 0.0
    for piece in pieces:
        if pages[-1] and used + piece.height > room:
            pages.append([])
            used = 0.0
        pages[-1].append(piece)
        used += piece.height
    return pages


def _text(
    figure: Figure, x: float, y: float, text: str, size: float, colour: str = INK, **kwargs: Any
) -> None:
    # Whoever writes $ means $: no formulas.
    text = text.replace("$", r"\$")
    figure.text(x / WIDTH, 1 - y / HEIGHT, text, fontsize=size, color=colour, va="top", **kwargs)


def _title(title: str, subtitle: str) -> Iterator[Piece]:
    lines, under = textwrap.wrap(title, 50), textwrap.wrap(subtitle, 96)

    def draw(figure: Figure, y: float) -> None:
        for number, line in enumerate(lines):
            _text(figure, LEFT, y + 0.3 * number, line, 16, weight="bold")
        for number, line in enumerate(under):
            _text(figure, LEFT, y + 0.3 * len(lines) + 0.05 + 0.18 * number, line, 9, QUIET)

    yield Piece(0.3 * len(lines) + 0.27 + 0.18 * len(under), draw)


def _section(section: Section) -> Iterator[Piece]:
    pieces = [piece for block in section.blocks for piece in _block(block)]

    def draw(figure: Figure, y: float) -> None:
        _text(figure, LEFT, y, section.title, 12.5, ACCENT, weight="bold")
        _rule(figure, y + 0.28, LINE, 1.0)
        pieces[0].draw(figure, y + 0.42)

    # A title stays with what follows it.
    yield Piece(0.42 + pieces[0].height, draw)
    yield from pieces[1:]


def _rule(figure: Figure, y: float, colour: str, width: float) -> None:
    from matplotlib.lines import Line2D

    ends = [LEFT / WIDTH, 1 - LEFT / WIDTH]
    figure.add_artist(Line2D(ends, [1 - y / HEIGHT] * 2, color=colour, linewidth=width))


def _block(block: Block) -> Iterator[Piece]:
    match block:
        case Text(text, strong):
            yield _paragraph(textwrap.wrap(text, 88 if strong else 96), strong)
        case Command(lines):
            wrapped = [part for line in lines for part in textwrap.wrap(line, 92, subsequent_indent="    ")]
            yield _paragraph(wrapped, False, mono=True)
        case Picture(png, caption):
            yield _picture(png, caption)
        case Table():
            yield from _table(block)


def _paragraph(lines: Sequence[str], strong: bool, mono: bool = False) -> Piece:
    step, padding = 0.19, 0.12 if strong or mono else 0.0

    def draw(figure: Figure, y: float) -> None:
        from matplotlib.patches import Rectangle

        high = step * len(lines) + 2 * padding
        if padding:
            corner = (LEFT / WIDTH, 1 - (y + high) / HEIGHT)
            figure.add_artist(Rectangle(corner, MEASURE / WIDTH, high / HEIGHT, color=TINT, zorder=-1))
            if strong:
                figure.add_artist(Rectangle(corner, 0.05 / WIDTH, high / HEIGHT, color=ACCENT))
        for number, line in enumerate(lines):
            _text(
                figure, LEFT + 1.3 * padding, y + padding + step * number, line, 8 if mono else 9.2,
                family="monospace" if mono else "sans-serif",
            )  # fmt: skip

    return Piece(step * len(lines) + 2 * padding + 0.14, draw)


def _picture(png: bytes, caption: str) -> Piece:
    pixels = image.imread(io.BytesIO(png))
    high, wide = pixels.shape[:2]
    scale = min(MEASURE / wide, 4.6 / high)
    lines = textwrap.wrap(caption, 110)

    def draw(figure: Figure, y: float) -> None:
        axes = figure.add_axes(
            [LEFT / WIDTH, 1 - (y + scale * high) / HEIGHT, scale * wide / WIDTH, scale * high / HEIGHT]
        )
        axes.imshow(pixels, interpolation="lanczos", aspect="auto")
        axes.axis("off")
        for number, line in enumerate(lines):
            _text(figure, LEFT, y + scale * high + 0.06 + 0.16 * number, line, 8, QUIET)

    return Piece(scale * high + 0.16 * len(lines) + 0.26, draw)


def _table(table: Table) -> Iterator[Piece]:
    """A caption with the header and the first row, and then every row a piece of its own."""
    lengths = [
        max(len(str(row[column])) for row in [table.header, *table.rows])
        for column in range(len(table.header))
    ]
    # The first column takes what the others leave; a word longer than its column is wrapped.
    character = 0.075
    if table.numeric:
        others = [character * length + 0.2 for length in lengths[1:]]
        widths = [MEASURE - sum(others), *others]
    else:
        share = [min(length, 60) + 3 for length in lengths]
        widths = [MEASURE * each / sum(share) for each in share]

    def row(words: Sequence[str], colour: str, **kwargs: Any) -> Piece:
        cells = [
            textwrap.wrap(str(word), max(4, int(width / character))) or [""]
            for word, width in zip(words, widths, strict=True)
        ]
        lines = max(map(len, cells))

        def draw(figure: Figure, y: float) -> None:
            x = LEFT
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                right = table.numeric and column > 0
                for number, line in enumerate(cell):
                    _text(
                        figure, x + width if right else x, y + 0.16 * number, line, 8, colour,
                        ha="right" if right else "left", **kwargs,
                    )  # fmt: skip
                x += width
            _rule(figure, y + 0.16 * lines + 0.025, LINE, 0.6)

        return Piece(0.16 * lines + 0.06, draw)

    lines = textwrap.wrap(table.caption, 92)
    above = 0.19 * len(lines) + 0.05 * bool(lines)
    header = row(table.header, QUIET, weight="bold")
    first, *others = [row(words, INK) for words in table.rows] or [Piece(0.0, lambda figure, y: None)]

    def draw(figure: Figure, y: float) -> None:
        for number, line in enumerate(lines):
            _text(figure, LEFT, y + 0.19 * number, line, 9.2, weight="bold")
        header.draw(figure, y + above)
        first.draw(figure, y + above + header.height)

    # What a table is called stays with its first row.
    yield Piece(above + header.height + first.height, draw)
    yield from others
    yield Piece(0.18, lambda figure, y: None)
