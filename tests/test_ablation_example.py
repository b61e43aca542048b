"""examples/ablation.py from end to end at a tiny size."""

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from matplotlib.image import imread

from mar_snn.llamba import LlambaForCausalLM
from mar_snn.provenance import versions
from mar_snn.spiking import SITES, SpikingConfig, calibrate, spikify

SECONDS = "seconds"


@pytest.fixture(scope="module")
def studies(load_example) -> ModuleType:
    return load_example("ablation_studies")


@pytest.fixture(scope="module")
def tables(load_example, studies) -> ModuleType:
    return load_example("ablation_tables")


@pytest.fixture(scope="module")
def example(load_example, studies, tables) -> ModuleType:
    return load_example("ablation")


@pytest.fixture(scope="module")
def teacher(llambas) -> Path:
    return llambas["dense"]


@pytest.fixture
def small(studies, monkeypatch):
    """A study of four rows, of which two are the same, in place of the referee's."""
    kl = {"alpha": 1.0, "beta": 0.0, "feature_weight": 0.0}
    lif = SpikingConfig(
        neuron="lif", tau=2.0, readout="sum", fire_ratio=1.0, gradient="surrogate"
    )
    row = studies.Row
    study = studies.Study(
        title="Small",
        max_steps=2,
        reference=("parts", "ternary"),
        rows=(
            row(section="parts", name="dense", spiking=None),
            row(section="parts", name="binary", spiking=lif, training=kl),
            row(
                section="parts",
                name="ternary",
                spiking=SpikingConfig(),
                training=kl,
                claim="better than binary",
                against="binary",
            ),
            row(
                section="again",
                name="4",
                spiking=SpikingConfig(),
                training=kl | {"learning_rate": 2e-4},  # that of the budget
            ),
        ),
    )
    monkeypatch.setitem(studies.STUDIES, "referee", study)
    return study


@pytest.fixture
def run(example, small, teacher, tmp_path, monkeypatch) -> Callable[..., int]:
    """Run the example on the tiny teacher; options override."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"body": f"line {i} of a text. " * 5}) for i in range(40)]
    texts.write_text("\n".join(lines))

    def run(**options: object) -> int:
        options = {
            "teacher": teacher,
            "train_data": texts,
            "text_column": "body",
            "output_dir": tmp_path / "out",
            "seeds": "3 5",
            "max_length": 16,
            "eval_rows": 4,
            "probe_rows": 2,
            **options,
        }
        arguments = [
            word
            for name, value in options.items()
            for word in (f"--{name}", *str(value).split())
        ]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
        return example.main()

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def without_times(results: dict) -> dict:
    for row in results["rows"]:
        row["statistics"].pop(SECONDS)
        for figures in row["runs"]:
            figures.pop(SECONDS)
    return results


def test_everything_the_example_promises_is_there(run, tables, tmp_path, capsys):
    assert run() == 0
    out = tmp_path / "out"
    # three different rows of two seeds; the fourth row is the third
    assert len(list((out / "runs").iterdir())) == 6
    results = read(out)
    assert results["versions"] == versions()
    assert results["machine"]["threads"] == 1
    assert (results["seeds"], results["arguments"]["max_steps"]) == ([3, 5], 2)
    dense, binary, ternary, again = results["rows"]
    assert ternary["runs"] == again["runs"]
    for figures in dense["runs"]:
        assert figures["perplexity_ratio"] == 1.0
        assert figures["alignment_error"] == figures["synops_per_token"] == 0.0
        assert figures["energy_ratio"] == 1.0
        assert "sparsity" not in figures
    for row in (binary, ternary):
        one, two = row["runs"]
        assert one["perplexity"] != two["perplexity"]
        for figures in row["runs"]:
            assert figures["perplexity"] > 1
            assert 0 < figures["sparsity"] < 1
            assert 0 < figures["alignment_error"] < 2
            assert figures["synops_per_token"] > 0
            sites = [figures[f"alignment_error.{site}"] for site in SITES]
            assert figures["alignment_error"] == pytest.approx(sum(sites) / 4)
    # half of what a ternary code keeps is below zero
    assert binary["runs"][0]["alignment_error"] > ternary["runs"][0]["alignment_error"]
    text = (out / "table.md").read_text(encoding="utf-8")
    assert text == "\n".join(tables.markdown(results))
    assert text in capsys.readouterr().out
    text = (out / "table.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["name"] for line in lines] == ["dense", "binary", "ternary", "4"]
    mean = ternary["statistics"]["perplexity"]["mean"]
    assert float(lines[2]["perplexity_mean"]) == mean
    assert lines[0]["sparsity_mean"] == ""
    assert imread(out / "perplexity.png").shape[1] == 1080


def test_a_finished_study_is_not_run_again(run, example, tmp_path, monkeypatch):
    assert run() == 0
    first = read(tmp_path / "out")

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(example.Bench, "run", refuse)
    assert run() == 0
    assert read(tmp_path / "out") == first
    # one of its seeds is finished too, and its results go where they are wanted
    assert run(seeds="5", results=tmp_path / "deep" / "one.json") == 0
    one = json.loads((tmp_path / "deep" / "one.json").read_text())
    assert one["rows"][1]["runs"] == first["rows"][1]["runs"][1:]
    assert one["rows"][1]["statistics"]["perplexity"]["std"] is None
    assert one["rows"][2]["verdict"] == "one seed decides nothing"


def test_a_changed_setting_is_another_run(run, tmp_path):
    runs = tmp_path / "out" / "runs"
    assert run(seeds="3") == 0
    assert len(list(runs.iterdir())) == 3
    # the last row names the learning rate that the budget had: now it stands alone
    assert run(seeds="3", learning_rate=1e-3) == 0
    assert len(list(runs.iterdir())) == 3 + 4
    # neither where it is written nor the number of threads changes what is trained
    assert run(seeds="3", threads=2, results=tmp_path / "results.json") == 0
    assert len(list(runs.iterdir())) == 7


@pytest.mark.parametrize("step", [1, 2])
def test_after_ctrl_c_the_same_command_goes_on(
    run, example, tmp_path, monkeypatch, capsys, step
):
    assert run(seeds="3", output_dir=tmp_path / "whole") == 0
    begun = []

    def press(*_: object, **__: object) -> None:
        begun.append(1)
        if len(begun) == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(example._StepOnTheBar, "on_step_begin", press)
    assert run(seeds="3") == 130
    assert "The same command goes on" in capsys.readouterr().err
    out = tmp_path / "out"
    # the dense row, which is not trained
    assert len(list((out / "runs").iterdir())) == 1
    assert not (out / "results.json").exists()
    assert run(seeds="3") == 0
    assert without_times(read(out)) == without_times(read(tmp_path / "whole"))


def test_gradients_share_their_calibration(example, small, teacher, run, monkeypatch):
    calls = []
    monkeypatch.setattr(
        example, "calibrate", lambda *args: (calls.append(1), calibrate(*args))
    )
    rows = [
        example.Row(section="s", name=name, spiking=SpikingConfig(**gradient))
        for name, gradient in {
            "a": {"gradient": "straight_through"},
            "b": {"gradient": "surrogate", "surrogate": "Sigmoid"},
            "c": {"gradient": "surrogate", "detach_reset": True},
            "d": {"gradient": "surrogate", "tau": 1.0},
        }.items()
    ]
    object.__setattr__(small, "rows", tuple(rows))
    object.__setattr__(small, "reference", ("s", "a"))
    assert run(seeds="3") == 0
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_steps": 0}, "--max_steps must be at least 1, got 0"),
        ({"eval_rows": -1}, "--eval_rows must be at least 1, got -1"),
        ({"seeds": "1 1"}, r"--seeds must be distinct numbers, got [1, 1]"),
        ({"teacher": "/nowhere"}, "/nowhere"),
        ({"train_data": "nothing.jsonl"}, "nothing.jsonl"),
        ({"max_length": 100_000}, "do not fill one row of 100000 tokens"),
    ],
)
def test_bad_input_gets_one_line_that_says_what_is_wrong(run, capsys, wrong, sentence):
    assert run(**wrong) == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ")
    ]
    assert sentence in line


def test_a_file_in_place_of_the_folder_is_refused(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(output_dir=tmp_path / "file") == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_a_spiking_teacher_is_refused(run, teacher, tmp_path, byte_tokenizer, capsys):
    student = spikify(LlambaForCausalLM.from_pretrained(teacher))
    student.save_pretrained(tmp_path / "student")
    byte_tokenizer().save_pretrained(tmp_path / "student")
    assert run(teacher=tmp_path / "student") == 2
    assert "spikes already: give a dense one" in capsys.readouterr().err


# ---- the studies
