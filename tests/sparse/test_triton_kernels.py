"""The Triton kernel, interpreted where there is no GPU, is the PyTorch function."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bounds import assert_as_exact, assert_linear

OF_NEURONS = Path(__file__).parents[1] / "neurons" / "test_triton_compile.py"


def decoded(rows, inputs, density, device, dtype=torch.float32):
    fires = torch.rand(rows, inputs) < density
    x = torch.randint(1, 16, (rows, inputs)) / 8 * fires
    return x.to(device, dtype)


@pytest.fixture
def launch(triton_device):
    from mar_snn.sparse.triton_kernels import event_linear

    return event_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (63, 5), (64, 256), (130, 259)]
)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_size_and_dtype(triton_device, launch, dtype, inputs, outputs, rows):
    x = decoded(rows, inputs, 0.3, triton_device, dtype)
    weight = torch.randn(outputs, inputs, device=triton_device).to(dtype)
    bias = torch.randn(outputs, device=triton_device).to(dtype)
    y = launch(x, weight, bias, None)
    assert y.dtype == dtype
    assert_linear(y, x, weight, bias)


def test_int8_rows_have_their_scale(triton_device, launch):
    x = decoded(2, 70, 0.5, triton_device)
    weight = torch.randint(-127, 128, (40, 70), device=triton_device).to(torch.int8)
    scale = torch.rand(70, device=triton_device)
    assert_linear(launch(x, weight, None, scale), x.double() * scale, weight)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_and_everything_fired(triton_device, launch, density):
    x = decoded(1, 100, density, triton_device)
    weight = torch.randn(300, 100, device=triton_device)
    assert_linear(launch(x, weight, None, None), x, weight)


def test_the_weights_of_silent_inputs_are_never_read(triton_device, launch):
    weight = torch.full((50, 80), float("nan"), device=triton_device)
    weight[:, [3, 70]] = 1.0
    x = torch.zeros(2, 80, device=triton_device)
    x[0, 3], x[1, 70] = 1.0, 2.0
    y = launch(x, weight, None, None)
    assert y[0].tolist() == [1.0] * 50
    assert y[1].tolist() == [2.0] * 50


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_a_step_of_the_model_is_the_dense_step_on_a_gpu(model, weights):
    from mar_snn.sparse import optimize_for_decoding

    model, ids = model.cuda(), torch.randint(1, 64, (1, 1), device="cuda")
    optimize_for_decoding(model, weights=weights, break_even=1.0)
    with torch.no_grad():
        few = model(ids).logits.cpu()
        many = model(ids.expand(9, 1)).logits[:1].cpu()
        exact = model.cpu().double()(ids.cpu()).logits
    assert_as_exact([few], [many], [exact])


# ---- compiled for GPUs that are not there


def check_everything():
    """Loads of weights are wide and masked, offsets are 64 bits, nothing is spilled."""
    from mar_snn.sparse.triton_kernels import event_linear

    spec = importlib.util.spec_from_file_location("compile_of_neurons", OF_NEURONS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for capability in (80, 90, 100):
        compiler = module.Compiler(capability)
        for dtype in (torch.bfloat16, torch.float32, torch.int8):
            weight = torch.empty(2048, 8192, dtype=dtype).t()
            x = torch.zeros(
                1, 2048, dtype=torch.bfloat16 if dtype == torch.int8 else dtype
            )
            scale = torch.ones(2048) if dtype == torch.int8 else None
            kernel = compiler(partial(event_linear, x, weight, None, scale))
            ptx = kernel.asm["ptx"]
            assert f".target sm_{capability}" in ptx
            # predicated: @%p ld.global, of at least 8 bytes for each thread
            loads = re.findall(r"@%p\d+ ld\.global\S*\.(v\d)\.b(\d+)", ptx)
            widths = {int(count[1]) * int(bits) for count, bits in loads}
            assert max(widths) >= 64, (dtype, loads)
            assert re.search(r"(?:red|atom)\.\S*add\.\S*f32", ptx)
            assert ".local" not in ptx


@pytest.mark.slow
def test_the_kernel_compiles_as_it_should(tmp_path):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.sparse.test_triton_kernels"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        env=environment
        | {"PYTHONDONTWRITEBYTECODE": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    check_everything()
