"""Printing on consoles that cannot show every character."""

import sys
from collections.abc import Iterator
from io import TextIOWrapper

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

__all__ = ["Showable", "show_what_can_be_shown"]


def show_what_can_be_shown() -> None:
    """From now on a ? stands on the console for what its encoding does not have.

    For programs, before they print; without it an ASCII console ends them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


class Showable:
    """The same for one thing that rich prints, on whatever console."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Segment]:
        for text, style, control in console.render(self._content, options):
            shown = text.encode(options.encoding, "replace").decode(options.encoding)
            yield Segment(shown, style, control)
