"""The figures of README and documentation are those of the committed results."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

import pytest

from mar_snn.spiking import SpikingConfig

ROOT = Path(__file__).parent.parent


def read_results(name):
    path = ROOT / "benchmarks" / "results" / name
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_figures_of_the_readme_are_those_of_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo = read_results("demo-cpu.json")
    mean, std = demo["mean"], demo["std"]
    seconds = [run["seconds"] for run in demo["runs"]]
    calibrated = mean["perplexity.calibrated"] / mean["perplexity.teacher"]
    for figure in (
        f"| dense teacher | {mean['perplexity.teacher']:.2f} | 1 |",
        f"| {mean['perplexity.calibrated']:.2f} ± {std['perplexity.calibrated']:.2f} |"
        f" {calibrated:.3f} |",
        f"| {mean['perplexity.distilled']:.2f} ± {std['perplexity.distilled']:.2f} |"
        f" {mean['perplexity_ratio']:.3f} ± {std['perplexity_ratio']:.3f} |",
        f"micro-step: {mean['firing_rate']:.3f}.",
        f"| {mean['energy_ratio']:.2f} |",
        f"| {mean['energy_ratio_without_lm_head']:.2f} |",
        *(
            f"| {mean[f'energy_ratios.{name}.low']:.2f} to "
            f"{mean[f'energy_ratios.{name}.high']:.2f} |"
            for name in (
                "weights once a call, dram",
                "all traffic, dram",
                "quantised dense, 4 bits",
            )
        ),
        f"{min(seconds):.0f} to {max(seconds):.0f} s a run",
        f"spiking, {demo['steps']} steps of SBDS",
    ):
        assert figure in readme
    for runs in read_results("swap_neurons-cpu.json")["results"].values():
        cells = [
            f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"
            for values, digits in (
                ([100 * run["accuracy"] for run in runs], 1),
                ([100 * run["firing_rate"] for run in runs], 1),
                ([run["synops"] for run in runs], 0),
            )
        ]
        assert f"| {' | '.join(cells)} |" in readme


def test_the_figures_of_the_fire_ratio_are_those_of_the_committed_results():
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    for ratio, name in (("2/3", "demo-cpu.json"), ("1", "demo-rho1-cpu.json")):
        results = read_results(name)
        cells = [
            f"{results['mean'][key]:,.{digits}f} ± {results['std'][key]:,.{digits}f}"
            for key, digits in (
                ("perplexity.calibrated", 2),
                ("perplexity.distilled", 2),
                ("perplexity_ratio", 3),
                ("firing_rate", 4),
                ("synops_per_token", 0),
            )
        ]
        assert f"| {ratio} | {' | '.join(cells)} |" in page


def test_the_distilled_student_is_within_five_percent_of_its_teacher():
    for run in read_results("demo-cpu.json")["runs"]:
        assert run["perplexity_ratio"] <= 1.05


# ---- benchmarks/neurons.py


@pytest.fixture(scope="module")
def neurons():
    """The results, each row by what it measured."""
    rows = read_results("neurons-cpu.json")
    found = {(r["name"], r["steps"], r["dtype"]): r for r in rows["neuron_rows"]}
    return lambda name, steps, dtype: found[name, steps, f"torch.{dtype}"]


def test_the_tables_of_the_neurons_are_those_of_the_committed_results():
    path = ROOT / "benchmarks" / "neurons.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_neurons", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    page = (ROOT / "docs" / "neurons.md").read_text(encoding="utf-8")
    results = read_results("neurons-cpu.json")
    for rows in (results["neuron_rows"], results["code_rows"]):
        assert benchmark.markdown(rows) in page


def test_bytes_and_their_share_of_a_copy_stand_beside_each_time():
    results = read_results("neurons-cpu.json")
    for row in results["neuron_rows"] + results["code_rows"]:
        for key in ("forward", "both"):
            rate = row[f"{key}_bytes"] / row[f"{key}_ns"] * 1e9
            share = rate / results["copy_bytes_per_second"]
            assert row[f"{key}_share_of_copy"] == pytest.approx(share)


DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@DTYPES
def test_a_step_of_many_costs_what_a_step_of_few_costs(neurons, dtype):
    few, many = (neurons("ATMNNode, torch", steps, dtype) for steps in (4, 64))
    for key in ("forward_ns", "both_ns"):
        assert many[key] <= 1.3 * few[key]


@DTYPES
def test_at_64_steps_training_is_four_times_faster_than_spikingjellys_ternary(
    neurons, dtype
):
    ours, theirs = (
        neurons(name, 64, dtype) for name in ("ATMNNode, torch", "TernaryLIFNode")
    )
    assert 4 * ours["both_ns"] <= theirs["both_ns"]


def test_the_coder_is_three_times_faster_than_the_loop_and_keeps_only_its_input():
    rows = read_results("neurons-cpu.json")["code_rows"]
    ours = [row for row in rows if row["name"] == "atmn_code, torch"]
    loops = [row for row in rows if row["name"] == "loop"]
    assert len(ours) == len(loops) == 5 * 2 * 2
    for row, loop in zip(ours, loops, strict=True):
        assert all(row[k] == loop[k] for k in ("steps", "gradient", "dtype", "rows"))
        assert row["saved_per_byte_of_x"] <= 1.1
        if row["steps"] == 4:
            assert row["rows"] == 4096
            assert 3 * row["forward_ns"] <= loop["forward_ns"]
            assert 3 * row["both_ns"] <= loop["both_ns"]


# ---- examples/ablation.py


@pytest.mark.parametrize("name", ["ablation-cpu.json", "coder_study-cpu.json"])
def test_the_tables_of_the_ablation_are_those_of_the_committed_results(
    load_example, name
):
    studies, tables = (
        load_example(f"ablation_{part}") for part in ("studies", "tables")
    )
    results = read_results(name)
    assert len(results["seeds"]) >= 3
    study = studies.STUDIES[results["study"]]
    rows = [(row["section"], row["name"]) for row in results["rows"]]
    assert rows == [(row.section, row.name) for row in study.rows]
    runs = [row["runs"] for row in results["rows"]]
    again = tables.collect(study, dict(zip(rows, runs, strict=True)))
    # as far as it is shown: logarithms may differ in their last bit elsewhere
    assert tables.markdown(again) == tables.markdown(results)
    page = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables.markdown(results))


def test_the_parts_in_the_readme_are_those_of_the_committed_results():
    rows = read_results("ablation-cpu.json")["rows"]
    found = {row["name"]: row for row in rows if row["section"] == "Components"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in (
        "binary LIF, forward KL",
        "ATMN, forward KL",
        "ATMN, + reverse KL",
        "ATMN, SBDS",
    ):
        figures = (
            found[name]["statistics"][figure]
            for figure in ("perplexity_ratio", "sparsity", "alignment_error")
        )
        cells = [f"{figure['mean']:.3f} ± {figure['std']:.3f}" for figure in figures]
        assert f"| {name} | {' | '.join(cells)} |" in readme


def test_what_the_page_says_of_the_parts_is_what_was_measured():
    rows = read_results("ablation-cpu.json")["rows"]
    verdicts = {(row["section"], row["name"]): row.get("verdict") for row in rows}
    by_word = {
        "supported": [("Components", "ATMN, forward KL")]
        + [("Micro-steps T", steps) for steps in ("2", "3", "4", "6")]
        + [("Membrane tau", tau) for tau in ("1", "2")],
        "undecided": [
            ("Components", "ATMN, + reverse KL"),
            ("Components", "ATMN, SBDS"),
            ("Fire ratio", "1"),
        ]
        + [("Features, with both divergences", n) for n in ("post-norm", "both")],
        "contradicted": [
            ("Divergences (alpha, beta), without features", name)
            for name in ("(0, 1)", "(0.7, 0.2)")
        ],
    }
    for word, named in by_word.items():
        assert {verdicts[name] for name in named} == {word}


def test_the_default_coder_is_the_best_one_measured():
    rows = read_results("coder_study-cpu.json")["rows"]
    mean = {
        json.dumps(row["spiking"]): row["statistics"]["perplexity"]["mean"]
        for row in rows
    }
    default = json.loads(json.dumps(asdict(SpikingConfig())))
    assert min(mean, key=mean.get) == json.dumps(default)


# ---- benchmarks/memory.py


def test_the_table_of_memory_is_that_of_the_committed_results():
    path = ROOT / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_memory", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    lines = benchmark.table(read_results("memory.json")["bytes"])
    assert len(lines) == 9
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
