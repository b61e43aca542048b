"""What the Triton kernels compile to, for GPUs that are not there.

The launches run in a fresh interpreter: elsewhere the kernels may have been made for
interpretation, and the shape checker of the test run wraps what Triton reads.
"""

import os
import re
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.surrogate import KERNEL_SURROGATES

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

#: rows and channels, or steps and neurons
ROOMY = (512, 1024), (2, 2**20)
ODD = (5, 7), (3, 7)
ONE = (1, 1), (1, 1)


class Compiler:
    """A driver without a device: what would be launched is compiled and returned."""

    def __init__(self, capability):
        self.capability = capability
        self.compiled = []

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        # Triton keeps apart what it compiles for different devices
        return self.capability

    def get_current_stream(self, device):
        return 0

    def __call__(self, launch):
        from triton.runtime import JITFunction, driver

        def compile_only(kernel, grid):
            def run(*args, **kwargs):
                found = kernel.run(*args, grid=grid, warmup=True, **kwargs)
                self.compiled.append(found)

            return run

        driver.set_active(self)
        with mock.patch.object(JITFunction, "__getitem__", compile_only):
            launch()
        return self.compiled.pop()


def launches(dtype, name, sizes=ROOMY, *, detach_reset=False, every_v=True):
    """The launch of every kernel that takes the surrogate."""
    from mar_snn.neurons import triton_kernels

    wide = membrane_dtype(dtype)
    rows = torch.empty(sizes[0], dtype=dtype)
    x_seq = torch.empty(sizes[1], dtype=dtype)
    h_seq = torch.empty(sizes[1], dtype=wide)
    v_seq = h_seq if every_v else h_seq[:1]
    thresholds = torch.ones(sizes[0][1], dtype=wide)
    dynamics = Dynamics(0.7, 0.8, name, 1.3, detach_reset)
    code = (thresholds, (1.0, 0.7, 0.49), dynamics)
    steps = (thresholds, 1, dynamics)
    found = {
        "code": partial(triton_kernels.code, rows, *code, out_code=rows),
        "code backward": partial(
            triton_kernels.code_backward,
            *(rows, rows, *code),
            out_grad_x=rows,
            out_grad_threshold=thresholds,
        ),
    }
    if name is None:
        return found
    return found | {
        "steps": partial(
            triton_kernels.multi_step,
            *(x_seq, h_seq[0], *steps),
            out_spike_seq=x_seq,
            out_v_seq=v_seq,
            out_h_seq=h_seq if every_v else None,
        ),
        "steps backward": partial(
            triton_kernels.multi_step_backward,
            *(x_seq, v_seq, h_seq, *steps),
            out_grad_x_seq=x_seq,
            out_grad_v=h_seq[0],
            out_grad_threshold=h_seq[0],
        ),
    }


def check_exactness(kernel, direction, dtype):
    """The reference's roundings and no others, and offsets of 64 bits."""
    ptx, signature = kernel.asm["ptx"], kernel.src.signature
    strides = {kind for name, kind in signature.items() if name.endswith("_stride")}
    assert strides == {"i64"}
    assert signature["tau_inverse"] == signature["fire_ratio"] == "fp64"
    assert kernel.metadata.enable_fp_fusion is False
    if direction == "steps":
        assert "fma" not in ptx
    # the larger of a number and NaN is the number
    assert not re.search(r"\bmax\.f", ptx)
    if dtype == torch.float64:
        assert "cvt.rn.f32" not in ptx
        # a reciprocal root of 20 bits
        assert "rsqrt.approx.ftz" not in ptx
        if direction == "code":
            assert "0d" + struct.pack(">d", 0.49).hex().upper() in ptx
    if dtype == torch.bfloat16:
        assert "cvt.rn.bf16" in ptx


def check_speed(kernel, direction, dtype, folder):
    """Wide accesses, no exchange between threads from step to step, nothing spilled."""
    from triton import knobs

    ptx = kernel.asm["ptx"]
    widths = {torch.float64: "v2.b64", torch.float32: "v4.b32"}
    # 16 bytes, but 8 of a row of 16-bit inputs beside float32 membranes
    beside = "v2.b32" if "steps" in direction else "v4.b32"
    for access in ("ld", "st"):
        assert f"{access}.global.{widths.get(dtype, beside)}" in ptx
    if "steps" in direction:
        assert "bar.sync" not in ptx
    assert ".local" not in ptx
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout) == ["0", "0"]


def check_everything(folder):
    """Every kernel, dtype and surrogate for sm_90; each surrogate once for sm_80."""
    count = 0
    for capability in (90, 80):
        compiler = Compiler(capability)
        for index, name in enumerate([None, *KERNEL_SURROGATES]):
            for dtype in DTYPES if capability == 90 else [DTYPES[index % 4]]:
                for direction, launch in launches(dtype, name).items():
                    kernel = compiler(launch)
                    assert f".target sm_{capability}" in kernel.asm["ptx"]
                    check_exactness(kernel, direction, dtype)
                    check_speed(kernel, direction, dtype, folder)
                    count += 1
    # two kernels of codes each, and two of steps where there is a surrogate
    assert count == (4 + 1) * (2 + 7 * 4)


def check_specialisations():
    """Sizes of one, which Triton takes for constants, odd ones, and other branches."""
    from mar_snn.neurons import triton_kernels

    compiler = Compiler(90)
    sources = set()
    for sizes in (ONE, ODD):
        for choice in (True, False):
            for launch in launches(
                *(torch.float32, "ATan", sizes), detach_reset=choice, every_v=choice
            ).values():
                sources.add(compiler(launch).asm["ptx"])
    # `code` knows nothing of the choice
    assert len(sources) == 2 * (1 + 2 * 3)
    with mock.patch.object(triton_kernels, "_INT64_NEURONS", 0):
        for direction in ("steps", "steps backward"):
            wide = compiler(launches(torch.float32, "ATan")[direction]).asm["ptx"]
            assert "rem.s64" in wide
            assert "rem.s32" not in wide


@pytest.mark.slow
def test_every_kernel_compiles_as_it_should(tmp_path):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, __file__, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment
        | {"PYTHONDONTWRITEBYTECODE": "1", "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    check_everything(Path(sys.argv[1]))
    check_specialisations()
