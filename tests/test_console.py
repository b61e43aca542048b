"""Printing on consoles that cannot show every character."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from mar_snn.console import Showable, show_what_can_be_shown

ROOT = Path(__file__).parents[1]
PROGRAMS = [
    path
    for folder in ("examples", "benchmarks", "mar_snn/harness")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__main__":' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "T?r ?5 ?"), ("cp932", "T?r ±5 Σ"), ("utf-8", "T·r ±5 Σ")],
)
def test_what_a_console_cannot_show_is_a_question_mark(monkeypatch, encoding, shown):
    streams = {
        name: TextIOWrapper(BytesIO(), encoding) for name in ("stdout", "stderr")
    }
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    show_what_can_be_shown()
    for stream in streams.values():
        print("T·r ±5 Σ", file=stream, flush=True)
        assert stream.buffer.getvalue().decode(encoding).strip() == shown


def test_a_stream_that_is_no_file_is_left_alone(capsys):
    show_what_can_be_shown()
    sys.stdout.write("T·r")
    assert capsys.readouterr().out == "T·r"


def test_what_rich_prints_is_shown_as_far_as_it_can_be():
    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    Console(file=stream).print(Showable("T·r"))
    stream.flush()
    assert stream.buffer.getvalue() == b"T?r\n"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_shows_what_can_be_shown(path):
    text = path.read_text(encoding="utf-8")
    main = text.split('if __name__ == "__main__":\n')[1]
    shows = main.startswith("    show_what_can_be_shown()\n")
    # examples end, and begin, in one place
    assert shows or "\n@command.ended(" in text
