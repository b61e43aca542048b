"""What cupy_kernels hands to CuPy: arguments, memory, devices and streams."""

import importlib.util
import sys

import pytest
import torch

from mar_snn.neurons import cupy_kernels
from mar_snn.neurons.backends import Dynamics
from tests.neurons.host_cuda import host_cupy


@pytest.fixture
def cupy(monkeypatch):
    with host_cupy(monkeypatch) as fake:
        yield fake


def test_two_steps_by_hand(cupy):
    x_seq = torch.tensor([[0.75, -3.0, 1.0], [0.75, 0.0, 0.0]])
    v_seq, spike_seq, h_seq = (torch.full((2, 3), torch.nan) for _ in range(3))
    cupy_kernels.multi_step(
        x_seq,
        torch.zeros(3),
        torch.tensor([1.0]),
        1,
        Dynamics(2.0, 1.0, "Sigmoid", 4.0, False),
        out_spike_seq=spike_seq,
        out_v_seq=v_seq,
        out_h_seq=h_seq,
    )
    assert h_seq.tolist() == [[0.75, -3, 1], [1.125, -1, 0]]
    assert spike_seq.tolist() == [[0, -1, 1], [1, -1, 0]]
    assert v_seq.tolist() == [[0.75, -2, 0], [0.125, 0, 0]]


def test_nothing_is_written_beside_the_results(cupy):
    memory = torch.zeros(5, 24)
    cupy_kernels.code(
        torch.ones(3, 8),
        torch.ones(8),
        (1.0,),
        Dynamics(1.0, 1.0, None, 1.0, False),
        out_code=memory[1:4, 8:16],
    )
    expected = torch.zeros(5, 24)
    expected[1:4, 8:16] = 1
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("surrogate_name", [None, "Rect"])
def test_steps_need_a_surrogate_that_has_a_kernel(surrogate_name):
    rows, row = torch.zeros(1, 2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"a surrogate out of Sigmoid, .*, got"):
        cupy_kernels.multi_step_backward(
            *(rows, rows, rows, row, 1),
            Dynamics(2.0, 1.0, surrogate_name, 1.0, False),
            out_grad_x_seq=rows,
            out_grad_v=row,
            out_grad_threshold=row,
        )


def test_dtypes_without_a_kernel_are_named():
    x = torch.zeros(1, 16).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"got torch.float8_e4m3fn: convert the input"):
        cupy_kernels.code(
            x,
            torch.ones(16),
            (1.0,),
            Dynamics(1.0, 1.0, None, 1.0, False),
            out_code=x.clone(),
        )


# ---- CuPy, devices and streams


def encode_once():
    dynamics = Dynamics(1.0, 1.0, None, 1.0, False)
    x = torch.ones(2, 4)
    cupy_kernels.code(x, torch.ones(4), (1.0,), dynamics, out_code=torch.empty(2, 4))


def test_a_kernel_is_compiled_once_for_each_device(cupy, monkeypatch):
    for device in (0, 1, 0, 1):
        monkeypatch.setattr(torch.Tensor, "get_device", lambda x, at=device: at)
        encode_once()
    assert cupy.compiled == [("code<float, 4>", 0), ("code<float, 4>", 1)]
    assert [launch.device for launch in cupy.launches] == [0, 1, 0, 1]


def test_kernels_run_on_the_current_stream_of_the_tensors_device(cupy, monkeypatch):
    for device in (0, 1):
        monkeypatch.setattr(torch.Tensor, "get_device", lambda x, at=device: at)
        encode_once()
    assert [launch.stream for launch in cupy.launches] == [71, 72]


def test_weights_reach_a_device_once(cupy):
    cupy_kernels._on_device.cache_clear()
    encode_once()
    encode_once()
    first, second = (launch.arguments[3] for launch in cupy.launches)
    assert first == second
    assert cupy_kernels._on_device.cache_info().misses == 1


def test_the_module_is_imported_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    spec = importlib.util.spec_from_file_location("afresh", cupy_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match="cupy"):
        module._launch("code<float, 1>", 0, ((1, 1), (1, 1)))


def test_the_host_refuses_arguments_that_cuda_would_misread(cupy, monkeypatch):
    grid = (1, 1), (1, 1)
    with pytest.raises(AssertionError, match="code<float, 1>"):
        cupy_kernels._launch("code<float, 1>", 0, grid, *[1] * 11)
    with pytest.raises(AssertionError, match="code<float, 1>"):
        cupy_kernels._launch("code<float, 1>", 0, grid, *[0] * 9, 1.0)
    assert cupy.launches == []
