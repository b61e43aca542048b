"""What the Triton kernel of the loss compiles to, for GPUs that are not there."""

import importlib.util
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

OF_NEURONS = Path(__file__).parents[1] / "neurons" / "test_triton_compile.py"


def make_compiler(capability):
    """The driver without a device that the kernels of neurons are compiled with."""
    spec = importlib.util.spec_from_file_location("compile_of_neurons", OF_NEURONS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Compiler(capability)


def launch(dtype, vocab, name, soft_cap, *, slope):
    """A call of the kernel on two tokens."""
    from mar_snn.distill.divergences import make_divergence
    from mar_snn.distill.heads import LogitTransform
    from mar_snn.distill.triton_divergences import compare_rows

    student, teacher = torch.empty(2, 2, vocab, dtype=dtype)
    return lambda: compare_rows(
        student,
        teacher,
        torch.ones(2, dtype=dtype) if slope else None,
        make_divergence(name, None, 0.2, 0.7),
        (LogitTransform(1.0, soft_cap), LogitTransform()),
        1.5,
    )


def check(kernel, capability, dtype, folder):
    """The right device, nothing fused that the caller did not fuse, nothing spilled."""
    from triton import knobs

    ptx, signature = kernel.asm["ptx"], kernel.src.signature
    assert f".target sm_{capability}" in ptx
    assert kernel.metadata.enable_fp_fusion is False
    strides = {kind for name, kind in signature.items() if name.endswith("_stride")}
    assert strides == {"i64"}
    assert signature["alpha"] == "fp64"
    assert ".local" not in ptx
    width = {torch.float32: "v4.b32", torch.float64: "v2.b64"}[dtype]
    assert f"ld.global.{width}" in ptx
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout) == ["0", "0"]
    # what it stores besides is one number a row
    return f"st.global.{width}" in ptx


def check_everything(folder):
    """Every branch on one device, the longest on two more, and an odd vocabulary."""
    everything = list(product(("sbds", "jsd"), (None, 30.0), (True, False)))
    for capability in (80, 90, 100):
        compiler = make_compiler(capability)
        for dtype in (torch.float32, torch.float64):
            every = capability == 90 and dtype == torch.float32
            for name, soft_cap, slope in everything if every else [("jsd", 30.0, True)]:
                kernel = compiler(launch(dtype, 128256, name, soft_cap, slope=slope))
                assert check(kernel, capability, dtype, folder) == slope
    odd = compiler(launch(torch.float32, 1003, "sbds", None, slope=True))
    assert "ld.global.b32" in odd.asm["ptx"]


@pytest.mark.slow
def test_the_kernel_compiles_as_it_should(tmp_path):
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
