"""What docs/losses.md says is what was measured, and within what was promised."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(load_results):
    return load_results("losses-cpu")


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("losses")


def peaks(results, loss, dtype="float32"):
    return {
        row["tokens"]: row["peak_bytes"]
        for row in results["memory"]
        if (row["loss"], row["dtype"]) == (loss, dtype)
    }


def test_the_tables_are_those_of_the_results(results, benchmark):
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert benchmark.memory_markdown(results["memory"]) in page
    assert benchmark.precision_markdown(results["precision"]) in page
    low, high = results["time"]["ratio_range"]
    assert f"{results['time']['ratio']:.2f} ({low:.2f} to {high:.2f})" in page
    assert f"{results['time']['recomputing']:.2f} times the time" in page


def test_chunks_take_a_tenth_of_the_memory_at_4096_tokens(results):
    assert (results["vocabulary"], results["hidden"]) == (128_256, 2_048)
    dense, chunked = peaks(results, "dense"), peaks(results, "chunked")
    assert 10 * chunked[4096] <= dense[4096]


def test_memory_grows_by_the_hidden_states_gradient_alone(results):
    chunked = peaks(results, "chunked")
    few, many = min(chunked), max(chunked)
    assert (few, many) == (256, 4096)
    # two float32 copies of [tokens, hidden], and what an allocator keeps
    grown = (many - few) * results["hidden"] * 4
    assert chunked[many] - chunked[few] <= 2 * grown + 0.02 * chunked[few]


def test_the_gradient_is_within_one_percent_and_rounded_logits_are_not(results):
    near = [row for row in results["precision"] if row["nats"] == 0.01]
    assert {row["loss"] for row in near} >= {"dense", "chunked"}
    for row in near:
        assert 0.005 < row["forward_kl"] < 0.02
        worst = max(row["hidden"], row["head"])
        assert worst > 0.05 if row["loss"] == "dense" else worst <= 0.01


def test_chunks_cost_no_more_than_a_fifth_of_the_time_of_the_dense_loss(results):
    assert results["time"]["ratio"] <= 1.2
