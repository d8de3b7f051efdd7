"""What a report is made of: sections of text, tables, commands and pictures, however they are printed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph; a strong one is what the reader must not miss."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of words under a header; columns after the first are right-aligned where `numeric`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Command:
    """Lines for a terminal."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str


Block = Text | Table | Command | Picture


@dataclass(frozen=True)
class Section:
    """A title and what stands beneath it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def picture(figure: Figure, caption: str) -> Picture:
    """A figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, bbox_inches="tight")
    return Picture(buffer.getvalue(), caption)
