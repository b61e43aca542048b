"""What docs/decoding.md says is what was measured, and within what was promised."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(load_results):
    return load_results("decode-cpu")


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("decode_tables")


def test_the_tables_are_those_of_the_results(results, benchmark):
    made = benchmark.tables(results)
    shown = set()
    for name in ("docs/decoding.md", "README.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        assert benchmark.filled(page, made) == page
        shown |= {table for table in made if f"<!-- end of {table} -->" in page}
    assert shown == made.keys()


def test_a_table_is_filled_in_between_its_lines_and_nowhere_else(benchmark):
    page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\nkept\n"
    expected = "a\n<!-- x -->\n\n| 1 |\n\n<!-- end of x -->\nb\n<!-- y -->\nkept\n"
    assert benchmark.filled(page, {"x": "| 1 |", "y": "?", "z": "?"}) == expected


def test_below_a_third_every_projection_gains_by_its_silent_inputs(results):
    found = [row for row in results["kernels"] if row["density"] <= 0.3]
    assert len(found) == 2 * 3 * 4 * 3  # threads, weights, shapes, densities
    assert all(row["speedup"] > 1 for row in found)


def test_the_dense_product_is_the_fastest_there_is(results):
    for row in results["kernels"]:
        dense = min(q["us"] for n, q in row["ways"].items() if n.startswith("dense"))
        assert row["speedup"] == dense / row["ways"]["event-driven"]["us"]
        assert row["ideal"] == row["speedup"] * row["density"]
        # nothing that was measured fits a last-level cache
        size = {"bfloat16": 2, "float32": 4, "int8": 1}[row["weights"]]
        assert row["matrices"] * row["inputs"] * row["outputs"] * size >= 2**29


def test_int8_is_measured_against_int8(results):
    for row in results["kernels"]:
        assert {"dense, ours", "dense, torch", "read"} <= row["ways"].keys()
    for row in results["tokens"]:
        assert {"dense, torch", "dense, ours", "dense, int8"} <= row["models"].keys()
        for name, ratio in row["speedup"].items():
            assert row["speedup_low"][name] <= ratio <= row["speedup_high"][name]


def test_a_ratio_is_of_tokens_of_one_round_and_to_the_fastest_of_its_kind(
    load_benchmark,
):
    decode = load_benchmark("decode")
    taken = {
        "dense, torch": [4.0, 4.0, 4.0],
        "dense, ours": [2.0, 2.0, 4.0],  # the fastest in bfloat16
        "dense, int8": [1.0, 1.0, 3.0],
        "spiking, same": [1.0, 2.0, 2.0],  # 2, 1 and 2 times as fast
        "spiking, int8": [2.0, 0.5, 1.0],  # 0.5, 2 and 3 times
    }
    found = {name: decode.quantiles(times) for name, times in taken.items()}
    assert decode.speedups(found, taken) == {
        "speedup": {"spiking, same": 2.0, "spiking, int8": 2.0},
        "speedup_low": {"spiking, same": 1.0, "spiking, int8": 0.5},
        "speedup_high": {"spiking, same": 2.0, "spiking, int8": 3.0},
        "speedup_over_torch": {"spiking, same": 2.0},
    }
    taken["llama.cpp, Q8_0"] = [0.5, 0.5, 1.0]  # 0.25, 1 and 1 times as fast as int8
    found["llama.cpp, Q8_0"] = decode.quantiles(taken["llama.cpp, Q8_0"])
    assert decode.speedups(found, taken)["speedup"]["spiking, int8"] == 1.0


def test_sparse_tokens_are_faster_and_calibrated_ones_are_not(results):
    rows = {(row["density"], row["threads"]): row for row in results["tokens"]}
    for threads in (1, 2):
        sparse, calibrated = rows[0.3, threads], rows["calibrated", threads]
        assert abs(sparse["measured_density"]["spiking, same"] - 0.3) < 0.01
        for name in ("spiking, same", "spiking, int8"):
            assert sparse["speedup_low"][name] > 1
            assert calibrated["speedup_low"][name] <= 1
