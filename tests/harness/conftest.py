import copy
import json
from pathlib import Path

import datasets
import pytest

from mar_snn.harness import MarLM

#: Short and long, with and without "Question:", with line ends and spaces behind.
ROWS = [
    {"query": "The sky is", "choices": ["blue", "a fish", "Tuesday"], "gold": 0},
    {"query": "Question: two plus two?\n", "choices": ["four", "five"], "gold": 0},
    {"query": "Up and  ", "choices": ["down", "d", "over the hills"], "gold": 1},
    {"query": "Read.\nQuestion: why?", "choices": ["because", "no", "üß"], "gold": 2},
    {"query": "One\n\nQuestion: 1 < 2", "choices": ["yes", "no"], "gold": 1},
    {"query": "x", "choices": ["y", "y z", "y z w", "y z w v"], "gold": 3},
    {"query": "A Question: no.", "choices": ["end", "the end"], "gold": 0},
]


@pytest.fixture
def rows() -> list[dict[str, object]]:
    return copy.deepcopy(ROWS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write_tasks(tmp_path):
    """Write a folder of task files: name -> rows, or raw lines."""

    def write(**files: list[dict[str, object] | str]) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        for name, rows in files.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def make_lm(llambas):
    """A MarLM of the random Llamba, "dense" or "spiking"."""

    def make(kind: str = "dense", **options: object) -> MarLM:
        options = {"dtype": "float32", "batch_size": 4, "device": "cpu"} | options
        return MarLM(str(llambas[kind]), **options)

    return make
