"""benchmarks/neurons.py: who may be timed, and what is written of it."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "neurons.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_neurons", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick(benchmark, monkeypatch):
    """The benchmark without a compiler, and with one call for each time."""

    def once(run):
        run()
        return 1e-3

    monkeypatch.setattr(benchmark, "median_seconds", once)
    monkeypatch.setattr(benchmark, "STEPS", (4,))
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    return benchmark


def with_other_gradient(run):
    """The same values; the gradient is doubled."""

    def other(x):
        y = run(x)
        return 2 * y - y.detach()

    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whoever_claims_the_dynamics_keeps_them(quick, dtype):
    x_seq = torch.randn(4, 999).to(dtype)
    found = quick.contenders(CPU, dtype)
    names = [contender.name for contender in found]
    for peer in ("TernaryLIFNode, compiled", "FlexSN", "LIF operator", "ILIF operator"):
        assert peer in names
    tolerated = quick.TOLERATED[dtype]
    assert quick.refusals(found, found[0], x_seq, tolerated) == {}
    for contender in found:
        gradient = quick.both_directions(contender.run, x_seq, torch.ones_like(x_seq))
        assert gradient.count_nonzero() > 0


def test_other_spikes_and_other_gradients_are_refused(benchmark):
    x = torch.randn(3, 50)
    honest = benchmark.Contender("honest", torch.tanh, True)
    found = [
        honest,
        benchmark.Contender("off", lambda x: torch.tanh(x) + 1e-3, True),
        benchmark.Contender("steep", with_other_gradient(torch.tanh), True),
        benchmark.Contender("else", torch.sigmoid, False),
    ]
    assert benchmark.refusals(found, honest, x, 0.0) == {
        "off": "100.00% of the outputs differ",
        "steep": "gradients are 1 away",
    }


def test_a_refused_contender_has_a_reason_in_the_place_of_times(quick, monkeypatch):
    honest = quick.contenders(CPU, torch.float32)[:1]
    wrong = quick.Contender("wrong", with_other_gradient(honest[0].run), True)
    monkeypatch.setattr(quick, "contenders", lambda *_: [*honest, wrong])
    monkeypatch.setattr(quick, "DTYPES", (torch.float32,))
    timed, refused = quick.race_neurons(CPU, 10, rounds=2)
    # a millisecond for 40 element-steps, of 8 bytes, where a copy moves 3.2 MB a second
    assert timed["forward_ns"] == pytest.approx(25_000)
    quick.add_shares(timed, 3.2e6)
    assert timed["forward_share_of_copy"] == pytest.approx(0.1)
    assert refused == {
        "steps": 4,
        "dtype": "torch.float32",
        "name": "wrong",
        "refused": "gradients are 1 away",
    }
    rows = [timed, refused]
    quick.print_rows(rows)
    assert "| wrong | gradients are 1 away |" in quick.markdown(rows)


def test_a_code_with_another_gradient_is_refused(quick, monkeypatch):
    monkeypatch.setattr(quick, "DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(quick, "CODES", (9, 17))
    run = quick.ops.atmn_code
    monkeypatch.setattr(quick.ops, "atmn_code", with_other_gradient_of_code(run))
    rows = quick.race_codes(CPU, rounds=1)
    assert [row["name"] for row in rows] == ["atmn_code, torch", "loop"] * 2
    for ours, loop in zip(rows[::2], rows[1::2], strict=True):
        assert ours["refused"].startswith("gradients are 1")
        assert "forward_ns" not in ours
        assert loop["forward_bytes"] == 4


def with_other_gradient_of_code(run):
    return lambda x, **how: with_other_gradient(lambda x: run(x, **how))(x)
