"""examples/evaluate.py from end to end at a tiny size, and its answers."""

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from mar_snn.harness import MarLM

PATH = Path(__file__).parent.parent / "examples" / "evaluate.py"
ROWS = [
    {"query": f"Question: {i}?", "choices": ["yes", "no", "ü" * (i + 1)], "gold": i % 3}
    for i in range(8)
]


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("evaluate")


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder of two tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("first", "second"):
        lines = "".join(f"{json.dumps(row)}\n" for row in ROWS)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def arguments(llambas, tasks, tmp_path, monkeypatch):
    """Put the command into sys.argv: the spiking model on both tasks, and more."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def put(*more: object, model: object = llambas["spiking"]) -> None:
        always = ("--tasks_dir", tasks, "--output", tmp_path / "out" / "results.json")
        words = ["evaluate.py", model, *always, "--device", "cpu", *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])

    return put


@pytest.fixture
def results(tmp_path):
    """Read what the example wrote."""
    return lambda: json.loads((tmp_path / "out" / "results.json").read_text())


def test_one_command_compares_spiking_with_dense_on_tasks_and_a_text(
    example, arguments, llambas, results, tmp_path, capsys
):
    text = tmp_path / "text.txt"
    text.write_text("some words")
    arguments("--compare", llambas["dense"], "--text", text, "--limit", 6)
    assert example.main() == 0
    found = results()
    assert found["arguments"]["limit"] == 6
    assert {"machine", "versions", "model", "compare", "difference"} <= found.keys()
    assert found["versions"]["lm-eval"]
    assert found["model"]["spiking"]["time_steps"] == 4
    assert found["compare"]["spiking"] is None
    for model in (found["model"], found["compare"]):
        assert list(model["tasks"]) == ["first", "second", "text.txt"]
        assert [task["n"] for task in model["tasks"].values()] == [6, 6, 1]
        assert model["tasks"]["first"]["stderr"] is not None
    first = found["model"]["tasks"]["first"]["value"]
    gap = found["difference"]["tasks"]["first"]
    assert gap["value"] == pytest.approx(
        first - found["compare"]["tasks"]["first"]["value"]
    )
    assert gap["low"] <= gap["value"] <= gap["high"]
    shown = capsys.readouterr().out
    for word in ("first", "second", "text.txt", "average", "difference"):
        assert word in shown


def test_names_choose_among_the_files(example, arguments, results):
    arguments("--tasks", "second", "--batch_size", 3)
    assert example.main() == 0
    assert list(results()["model"]["tasks"]) == ["second"]
    assert "difference" not in results()


def test_after_ctrl_c_the_same_command_goes_on(
    example, arguments, results, tmp_path, monkeypatch, capsys
):
    arguments("--batch_size", 4)
    assert example.main() == 0
    whole = results()
    for path in sorted((tmp_path / "out").rglob("*.*")):
        path.unlink()

    calls, call = [], MarLM._model_call

    def interrupted(self, inps, *args, **kwargs):
        calls.append(len(inps))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, inps, *args, **kwargs)

    monkeypatch.setattr(MarLM, "_model_call", interrupted)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(PATH), run_name="__main__")
    assert stop.value.code == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
    assert example.main() == 0
    # 8 questions of 3 choices, which are the same in both tasks and asked once; and
    # the interrupted batch a second time
    assert sum(calls) == 24 + 4
    assert results()["model"] == whole["model"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--tasks", "frist"], "there is no task 'frist'; close to it are first"),
        (["--tasks_dir", "nowhere"], "nowhere has no .jsonl files"),
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read as UTF-8 text"),
        (["--compare", "/nowhere"], "/nowhere is no causal language model"),
        (["--device", "cuda:99"], "there is no device 'cuda:99' here"),
    ],
)
def test_bad_input_is_one_sentence(more, sentence, example, arguments, capsys):
    arguments(*more)
    assert example.main() == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert sentence in last


def test_a_folder_in_the_place_of_the_results_is_refused_before_the_work(
    example, arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(example, "load_tasks", None)  # not even called
    for path, sentence in (
        (tmp_path, f"--output {tmp_path} is a folder: name a file in it"),
        (PATH / "results.json", f"--output {PATH} is a file, not a folder"),
    ):
        arguments("--output", path)
        assert example.main() == 2
        assert sentence in capsys.readouterr().err


def test_a_bad_line_is_named(example, arguments, tasks, capsys):
    with (tasks / "second.jsonl").open("a") as file:
        file.write('{"query": "q", "choices": ["a", "b"], "gold": 2}\n')
    arguments()
    assert example.main() == 2
    error = capsys.readouterr().err
    assert "second.jsonl, line 9: gold must be an index from 0 to 1, not 2" in error


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--limit", 0], "--limit must be 1 or more, got 0"),
        (["--max_length", -1], "--max_length must be 1 or more, got -1"),
        (["--batch_size", "big"], "--batch_size must be auto or a number from 1"),
        (["--batch_size", 0], "--batch_size must be auto or a number from 1, got 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_bad_option_leaves_with_code_2(more, sentence, example, arguments, capsys):
    arguments(*more)
    with pytest.raises(SystemExit) as stop:
        example.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
