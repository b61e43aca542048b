"""examples/swap_neurons.py at a tiny size, and its answers to bad input."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mar_snn.neurons import ATMNNode

EXAMPLE = Path(__file__).parent.parent / "examples" / "swap_neurons.py"


@pytest.fixture(autouse=True)
def _beside_the_example(monkeypatch):
    """Where Python itself would look when it runs the script."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return exit_.value.code


def test_three_neurons_are_trained_measured_and_drawn(monkeypatch, capsys, tmp_path):
    sizes = ("--epochs", 3, "--seeds", 2, "--time_steps", 3)
    assert run(monkeypatch, *sizes, "--output_dir", tmp_path) == 0
    report = json.loads((tmp_path / "swap_neurons.json").read_text())
    assert list(report["results"]) == ["LIF", "TernaryLIF", "ATMN"]
    for name, runs in report["results"].items():
        assert len(runs) == 2
        for measured in runs:
            assert 0.2 < measured["accuracy"] <= 1.0  # guessing gives 0.1
            assert 0.0 < measured["firing_rate"] < 1.0
            assert (measured["negative_rate"] > 0.0) == (name != "LIF")
            # T 128 neurons with 128 weights each, and as many with 10
            assert 0 < measured["synops"] < 3 * 128 * (128 + 10)
    shown = capsys.readouterr().out
    assert "SynOps/image" in shown
    assert "±" in shown
    assert (tmp_path / "raster.png").stat().st_size > 1000
    weights = load_file(tmp_path / "atmn.safetensors")
    assert weights["layers.1.a"].shape == (1,)
    # the thresholds have moved from SpikingJelly's 1 times tau = 2
    assert weights["layers.1.a"].exp().item() != pytest.approx(2.0, abs=1e-6)


def test_the_synops_are_those_counted_by_hand(monkeypatch):
    # each spike of the first layer meets 128 weights, each of the second one 10
    example = runpy.run_path(str(EXAMPLE))
    net = example["build"]("ATMN", 3)
    assert sum(isinstance(module, ATMNNode) for module in net.modules()) == 2
    images, labels = torch.rand(5, 64) * 4, torch.zeros(5, dtype=torch.long)
    counted = []
    for node, fan_out in ((net.layers[1], 128), (net.layers[3], 10)):
        node.register_forward_hook(
            lambda _, __, spikes, fan_out=fan_out: counted.append(
                spikes.count_nonzero().item() * fan_out
            )
        )
    synops = example["measure"](net, images, labels)["synops"]
    assert synops * 5 == sum(counted) > 0


def test_one_seed_has_no_deviation(monkeypatch):
    example = runpy.run_path(str(EXAMPLE))
    assert example["mean_and_deviation"]([0.5], 100.0) == "50.0"
    assert example["mean_and_deviation"]([1.0, 3.0]) == "2.0 ± 1.4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "error: --epochs must be at least 1, got 0\n"),
        (["--seeds", "-1"], "error: --seeds must be at least 1, got -1\n"),
        (["--time_steps", "0"], "error: --time_steps must be at least 1, got 0\n"),
        (["--output_dir", str(EXAMPLE)], "is a file, not a folder\n"),
        (
            ["--output_dir", str(EXAMPLE / "deeper")],
            "error: [Errno 20] Not a directory",
        ),
        (["--epoch", "many"], "invalid int value: 'many'\n"),
        (["--colour", "red"], "error: "),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    monkeypatch, capsys, arguments, message
):
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
