"""benchmarks/results/harness-cpu.json: the harness scores as one does by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    path = ROOT / "benchmarks" / "results" / "harness-cpu.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_not_one_question_is_judged_otherwise_than_by_hand(results):
    for name in ("teacher", "student"):
        tasks = results["harness"][name]["tasks"]
        assert len(tasks) >= 4
        for task, score in tasks.items():
            by_hand = results["by_hand"][name][task]
            assert score["n"] == min(results["limit"], results["questions"][task])
            assert by_hand["same_questions"] == score["n"]
            for metric in ("acc", "acc_norm"):
                assert score["metrics"][metric]["value"] == by_hand[metric]


def test_one_model_spikes_and_the_other_does_not(results):
    assert results["harness"]["teacher"]["spiking"] is None
    assert results["harness"]["student"]["spiking"]["time_steps"] == 4
    dtypes = {found["dtype"] for found in results["harness"].values()}
    assert dtypes == {"float32"}


def test_the_table_of_the_documentation_is_that_of_the_results(results):
    path = ROOT / "benchmarks" / "harness.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_harness", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert benchmark.markdown(results) in page
