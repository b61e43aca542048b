"""What runs, what is said about it, and the sentence when it cannot."""

import importlib
import inspect
import logging

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import ATMNCoder, ATMNNode, backends, torch_kernels
from mar_snn.neurons.backends import (
    Kernels,
    available_backends,
    check_backend,
    kernels_for,
)


@pytest.fixture(autouse=True)
def _fresh_decisions(monkeypatch):
    """Every test decides, and says so, for the first time."""
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_reported", set())
    kernels_for.cache_clear()
    yield
    kernels_for.cache_clear()


def installed(monkeypatch, *names):
    monkeypatch.setattr(
        backends, "find_spec", lambda name: object() if name in names else None
    )


def parameters(function):
    named = inspect.signature(function).parameters.values()
    return [(p.kind, str(p)) for p in named if p.name != "self"]


@pytest.mark.parametrize("name", ["torch", "native", "triton", "cupy"])
def test_the_kernels_of_every_backend_keep_the_contract(name):
    if name == "triton":
        pytest.importorskip("triton")
    kernels = importlib.import_module(f"mar_snn.neurons.{name}_kernels")
    assert isinstance(kernels, Kernels)
    for function in ("multi_step", "multi_step_backward", "code", "code_backward"):
        assert function in kernels.__all__
        asked = parameters(getattr(Kernels, function))
        assert parameters(getattr(kernels, function)) == asked


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_torch_runs_everywhere(name):
    assert kernels_for(name, "cpu") is torch_kernels
    assert ATMNNode(backend=name).backend == name


def test_auto_says_once_what_it_became(caplog):
    with caplog.at_level(logging.INFO, "mar_snn.neurons.backends"):
        for _ in range(3):
            ATMNNode()(torch.ones(2))
    assert caplog.messages == ["ATMN runs on cpu with backend='torch'"]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [(("triton", "cupy"), "triton"), (("cupy",), "cupy"), ((), "torch")],
)
def test_auto_takes_the_first_that_a_gpu_can_run(monkeypatch, caplog, found, chosen):
    if chosen == "triton":
        pytest.importorskip("triton")
    installed(monkeypatch, *found)
    with caplog.at_level(logging.INFO, "mar_snn.neurons.backends"):
        kernels = kernels_for("auto", "cuda")
    assert kernels.__name__ == f"mar_snn.neurons.{chosen}_kernels"
    assert caplog.messages == [f"ATMN runs on cuda with backend='{chosen}'"]


def test_what_cannot_run_says_how_it_could(monkeypatch):
    installed(monkeypatch, "triton", "cupy")
    assert available_backends("cuda") == {
        "triton": "",
        "cupy": "",
        "native": "C kernels run on the CPU, the tensors are on cuda",
        "torch": "",
    }
    installed(monkeypatch)
    obstacles = available_backends("cuda")
    assert "pip install triton" in obstacles["triton"]
    assert "pip install 'mar-snn[cupy]'" in obstacles["cupy"]


def test_auto_never_interprets_triton_on_the_cpu(monkeypatch):
    installed(monkeypatch, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available_backends("cpu")["triton"] == ""
    assert kernels_for("auto", "cpu") is torch_kernels


def test_kernels_for_gpus_say_where_the_tensors_are(monkeypatch):
    installed(monkeypatch, "triton", "cupy")
    with pytest.raises(RuntimeError, match="run on GPUs, the tensors are on cpu"):
        kernels_for("triton", "cpu")
    with pytest.raises(RuntimeError, match="NVIDIA GPUs, the tensors are on cpu; use"):
        ATMNNode(backend="cupy")(torch.ones(2))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="use backend='auto', or one of 'torch'"):
        kernels_for("cupy", "cpu")


def test_cuda_source_does_not_run_on_rocm(monkeypatch):
    installed(monkeypatch, "triton", "cupy")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert available_backends("cuda")["triton"] == ""
    assert "NVIDIA" in available_backends("cuda")["cupy"]


def test_the_environment_speaks_for_auto_and_for_nothing_else(monkeypatch):
    installed(monkeypatch, "triton")
    monkeypatch.setenv("MAR_SNN_BACKEND", "triton")
    x = torch.ones(2)
    for neuron in (ATMNNode(), ATMNCoder(2)):
        with pytest.raises(RuntimeError, match="backend='triton' cannot run here"):
            neuron(x)
    assert ATMNNode(backend="torch")(x).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_environment_names_no_backend(monkeypatch, empty):
    monkeypatch.setenv("MAR_SNN_BACKEND", empty)
    assert ATMNNode()(torch.ones(2)).tolist() == [1.0, 1.0]


def test_an_environment_that_names_no_backend_is_named(monkeypatch):
    x = torch.ones(2)
    monkeypatch.setenv("MAR_SNN_BACKEND", "tritn")
    sentence = r"environment variable MAR_SNN_BACKEND must be .*'cupy', got 'tritn'"
    with pytest.raises(ValueError, match=sentence):
        ATMNNode()(x)
    assert ATMNNode(backend="torch")(x).tolist() == [1.0, 1.0]
    monkeypatch.setenv("MAR_SNN_BACKEND", "torch")
    assert ATMNNode()(x).tolist() == [1.0, 1.0]


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(RuntimeError, match=r"pip install 'mar-snn\[cupy\]'") as error:
        ATMNNode(backend="cupy")
    assert "install it, or use backend='auto'" in str(error.value)
    with pytest.raises(RuntimeError, match="Triton comes with PyTorch on Linux"):
        ATMNCoder(3, backend="triton")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'torch', 'native', 'triton', 'cupy', got 'c'"
    ):
        check_backend("c")


def test_a_surrogate_without_a_kernel_says_so_once_and_runs(caplog):
    x = torch.full((2,), 1.1, requires_grad=True)
    for _ in range(3):
        node = ATMNNode(surrogate_function=surrogate.Rect())
        node(x).sum().backward()
    # three passes, each with a slope of 1 inside half a unit around the threshold
    assert x.grad.tolist() == [3.0, 3.0]
    assert len(caplog.messages) == 1
    assert "the surrogate Rect has no kernel" in caplog.messages[0]
    ATMNNode(surrogate_function=surrogate.S2NN())(x)
    assert len(caplog.messages) == 2


def test_a_smooth_surrogate_is_no_news(caplog):
    ATMNNode(surrogate_function=surrogate.ATan(spiking=False))(torch.ones(2))
    ATMNNode()(torch.ones(2))
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_a_kernel_asked_for_by_name_is_not_replaced_in_silence(
    monkeypatch, backend, by
):
    installed(monkeypatch, "triton", "cupy")
    if by == "environment":
        monkeypatch.setenv("MAR_SNN_BACKEND", backend)
        backend = "auto"
    node = ATMNNode(surrogate_function=surrogate.Rect(), backend=backend)
    with pytest.raises(RuntimeError, match="no kernel for the surrogate Rect: use"):
        node(torch.ones(2))
    coder = ATMNCoder(
        2,
        surrogate_function=surrogate.Rect(),
        gradient="surrogate",
        backend=backend,
    )
    with pytest.raises(RuntimeError, match="one of Sigmoid, ATan, Piecewise"):
        coder(torch.ones(2))
