"""benchmarks/on_gpu.py: limits, partial results, and every part on a CPU."""

import json
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def on_gpu(load_benchmark, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return load_benchmark("on_gpu")


@needs_no_gpu
def test_without_a_gpu_it_says_so_and_ends_with_2(on_gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    assert on_gpu.main() == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err


def python(code: str) -> list[str]:
    """A process that gets the path of its rows as `sys.argv[2]`."""
    return [
        sys.executable,
        "-c",
        f"import sys, time\nfile = open(sys.argv[2], 'w')\n{code}",
    ]


def test_what_a_part_handed_over_is_kept_when_it_hangs(on_gpu, monkeypatch):
    monkeypatch.setattr(on_gpu, "GRACE", 1)
    hangs = python(
        'file.write(\'{"case": 1}\\n{"case": 2}\\n{"ca\'); file.flush(); time.sleep(99)'
    )
    rows, _ = on_gpu.rows_of(hangs, 1)
    assert rows[:2] == [{"case": 1}, {"case": 2}]
    assert [row["why"] for row in rows[2:]] == [
        "stopped after 2 s, in the middle of a row"
    ]


def test_a_part_that_fails_says_with_what(on_gpu):
    rows, _ = on_gpu.rows_of(python("sys.exit(3)"), 60)
    assert rows == [{"case": "stopped", "why": "the process ended with 3"}]


@needs_no_gpu
def test_parts_are_written_one_by_one_and_others_stay(
    on_gpu, monkeypatch, tmp_path, capsys
):
    path = tmp_path / "gpu.json"
    taken = []

    def rows_of(command, seconds):
        taken.append((command[3], seconds))
        if len(taken) == 3:
            raise KeyboardInterrupt
        return [{"case": "out of time"}], 1.0

    monkeypatch.setattr(on_gpu, "rows_of", rows_of)
    arguments = ["--device", "cpu", "--budget", "54", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--parts", "losses", *arguments])
    assert on_gpu.main() == 0
    monkeypatch.setattr(
        sys, "argv", ["on_gpu.py", "--parts", "neurons", "scans", *arguments]
    )
    with pytest.raises(KeyboardInterrupt):
        on_gpu.main()
    # a tenth of all: 60, 120, 90 seconds
    assert taken == [("losses", 6.0), ("neurons", 12.0), ("scans", 9.0)]
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["losses", "neurons"]
    assert parts["neurons"]["versions"]["torch"] == torch.__version__


def test_a_part_that_raises_hands_over_why(on_gpu, monkeypatch, tmp_path):
    part = import_module("gpu.losses")

    def rows(device):
        yield {"case": "loss"}
        raise ValueError("no more")

    monkeypatch.setattr(part, "rows", rows)
    assert on_gpu.run_part("losses", CPU, tmp_path / "rows", 60) == 1
    first, last = (tmp_path / "rows").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"case": "loss"}
    assert json.loads(last)["ok"] is False
    assert "ValueError: no more" in json.loads(last)["why"]


@pytest.mark.parametrize(
    ("part", "count"),
    [("correctness", 20), ("neurons", 8), ("losses", 4), ("scans", 2), ("decoding", 9)],
)
def test_every_part_has_rows_on_a_cpu(on_gpu, monkeypatch, part, count):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    module = import_module(f"gpu.{part}")
    for clock in ("milliseconds", "recorded_milliseconds", "wall_milliseconds"):
        if hasattr(module, clock):
            monkeypatch.setattr(module, clock, lambda run, *_: (run(), 2.0)[1])
    rows = list(islice(module.rows(CPU), count))
    assert len(rows) == count
    assert all(row.get("ok", True) for row in rows)
    results = {"parts": {part: {"rows": json.loads(json.dumps(rows))}}}
    table = import_module("gpu.tables").markdown(results)
    assert table.startswith(f"### {part.capitalize()}")


def test_a_wrong_kernel_is_found(on_gpu, monkeypatch):
    correctness = import_module("gpu.correctness")
    exact = correctness.ops.atmn_code

    def off_by_one_in_a_thousand(x, *how, **options):
        return exact(x, *how, **options) * 1.001

    monkeypatch.setattr(correctness.ops, "atmn_code", off_by_one_in_a_thousand)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    rows = list(islice(correctness.rows(CPU), 20))
    assert {row["case"] for row in rows if not row["ok"]} == {"atmn_code"}


def test_the_page_shows_what_was_measured(on_gpu, load_results):
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert import_module("gpu.tables").markdown(load_results("gpu-nvidia-h200")) in page
