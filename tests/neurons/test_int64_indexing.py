"""Rows farther apart than 32 bits can count, in memory that is one large hole."""

import pytest
import torch

from mar_snn.neurons import cupy_kernels, torch_kernels
from mar_snn.neurons.backends import Dynamics, kernels_for
from tests.neurons.host_cuda import host_cupy

#: elements from a row to the next
FAR = 2**31 + 8
NEURONS = 8
DYNAMICS = Dynamics(1.7, 0.8, "ATan", 2.0, False)
WEIGHTS = (1.0, 0.7, 0.49)


@pytest.fixture(params=["torch", "triton", "cupy"])
def backend(request, monkeypatch):
    """The kernels, and the device that they can run on."""
    cpu = torch.device("cpu")
    if request.param == "torch":
        yield torch_kernels, cpu
    elif request.param == "triton":
        device = request.getfixturevalue("triton_device")
        yield kernels_for("triton", device.type), device
    else:
        with host_cupy(monkeypatch):
            yield cupy_kernels, cpu


@pytest.fixture
def spread(backend, tmp_path):
    """Put a tensor of two rows where they lie far apart."""
    size, used = FAR + 4 * NEURONS, iter(range(4))
    hole = tmp_path / "hole"
    # a sparse file: nobody has eight gigabytes to spare for four rows
    memory = torch.from_file(str(hole), shared=True, size=size)
    if backend[1].type == "cuda":
        memory = torch.zeros(size, device=backend[1])

    def spread(rows):
        assert rows.shape == (2, NEURONS)
        far = memory.as_strided((2, NEURONS), (FAR, 1), NEURONS * next(used))
        return far.copy_(rows)

    yield spread
    hole.unlink()


def assert_same(run, inputs, results, spread):
    """`run` of far rows fills far rows with what it makes of near ones."""
    run(*inputs, *results)
    far_inputs, far_results = ([spread(x) for x in xs] for xs in (inputs, results))
    for far in far_results:
        far.fill_(torch.nan)
    run(*far_inputs, *far_results)
    for near, far in zip(results, far_results, strict=True):
        assert near.count_nonzero() > 0
        assert torch.equal(far, near)


def rows(device, count):
    return torch.randn(count, 2, NEURONS).to(device).unbind()


def neurons(device):
    return torch.randn(NEURONS).to(device), (torch.rand(NEURONS) + 0.5).to(device)


def test_steps_read_and_write_far_rows(backend, spread):
    kernels, device = backend
    v, v_threshold = neurons(device)

    def run(x_seq, spike_seq, v_seq, h_seq):
        kernels.multi_step(
            *(x_seq, v, v_threshold, 1, DYNAMICS),
            out_spike_seq=spike_seq,
            out_v_seq=v_seq,
            out_h_seq=h_seq,
        )

    assert_same(run, rows(device, 1), rows(device, 3), spread)


def test_gradients_of_steps_are_read_and_written_in_far_rows(backend, spread):
    kernels, device = backend
    of_v, v_threshold = neurons(device)

    def run(grad_spike_seq, grad_v_seq, h_seq, grad_x_seq):
        kernels.multi_step_backward(
            *(grad_spike_seq, grad_v_seq, h_seq, v_threshold, 1, DYNAMICS),
            out_grad_x_seq=grad_x_seq,
            out_grad_v=of_v,
            out_grad_threshold=torch.zeros_like(of_v),
        )

    assert_same(run, rows(device, 3), rows(device, 1), spread)


def test_codes_and_their_gradients_are_read_and_written_in_far_rows(backend, spread):
    kernels, device = backend
    of_threshold, v_threshold = neurons(device)

    def run(grad, x, code, grad_x):
        coding = (v_threshold, WEIGHTS, DYNAMICS)
        kernels.code(x, *coding, out_code=code)
        kernels.code_backward(
            *(grad, x, *coding), out_grad_x=grad_x, out_grad_threshold=of_threshold
        )

    assert_same(run, rows(device, 2), rows(device, 2), spread)
