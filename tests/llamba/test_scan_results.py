"""What docs/model.md says of the scan is what was measured, and as was promised."""

from pathlib import Path

import pytest

from mar_snn.llamba.scan import CPU_CHUNK

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(load_results):
    return load_results("scan-cpu")


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("scan")


@pytest.fixture(scope="module")
def ours(results):
    """The rows of the chunk that runs by default."""
    assert results["default_chunk"] == CPU_CHUNK
    rows = [row for row in results["rows"] if row["scan"] == "mar_snn"]
    return [row for row in rows if row["chunk"] == CPU_CHUNK]


def test_both_scans_computed_the_same(results):
    assert results["largest_difference"] < 1e-4


def test_the_shape_is_llamba_1bs(results):
    assert results["shape"] == {"heads": 32, "head_size": 64, "state_size": 64}
    assert {row["length"] for row in results["rows"]} == {512, 2048}


def test_forward_and_backward_are_a_third_faster_than_transformers_best(ours):
    assert len(ours) == 8
    assert min(row["speedup"] for row in ours) >= 1.3


def test_no_chunk_is_much_faster_than_the_one_that_runs_by_default(results):
    for row in results["rows"]:
        same = ("threads", "mean_a_log", "flush_denormal", "length", "scan")
        default = next(
            other
            for other in results["rows"]
            if other["chunk"] == CPU_CHUNK and all(other[k] == row[k] for k in same)
        )
        if row["scan"] == "mar_snn":
            assert default["both"] <= 1.15 * row["both"]


def test_strong_decays_and_denormal_numbers_cost_nothing(ours):
    alone = [row for row in ours if row["threads"] == 1]
    for length in (512, 2048):
        weak, strong, flushed = (
            next(
                row["both"]
                for row in alone
                if (row["length"], row["mean_a_log"], row["flush_denormal"])
                == (length, mean, flush)
            )
            for mean, flush in ((-3, False), (3, False), (3, True))
        )
        assert strong <= 1.25 * weak
        assert strong <= 1.25 * flushed


def test_a_compiled_step_takes_a_layer_less_than_150_microseconds(results):
    assert results["step"]["compiled"]["median"] < 150
    assert results["step"]["eager"]["median"] < 500


def test_the_table_and_the_range_are_those_of_the_results(results, benchmark, ours):
    page = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    assert benchmark.markdown(results["rows"]) in page
    low, high = (pick(row["speedup"] for row in ours) for pick in (min, max))
    assert f"{low:.2f} to {high:.2f} times" in page
    eager, compiled = (
        results["step"][name]["median"] for name in ("eager", "compiled")
    )
    assert f"{eager:.0f} µs a block, {compiled:.0f} µs compiled" in page
    for name in ("torch", "transformers"):
        assert f"{name} {results['versions'][name]}" in page
