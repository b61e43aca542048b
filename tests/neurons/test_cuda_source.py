"""atmn.cu by NVIDIA's own compiler, for GPUs that this machine need not have."""

import re
from typing import NamedTuple

import pytest

from mar_snn.neurons import cupy_kernels
from tests.neurons.host_cuda import WIDTHS, name_expressions

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings")

SOURCE = cupy_kernels._SOURCE.read_text()


class Program(NamedTuple):
    #: machine code
    cubin: bytes
    #: the same for people, before ptxas
    ptx: str
    #: what ptxas says of each kernel
    log: str
    #: the mangled names, in the order of the name expressions
    lowered: list[bytes]


def compiled(architecture: str, names: list[str]) -> Program:
    """The kernels as CuPy compiles them: with -ftz=true behind what one asks for."""
    program = ask(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"atmn.cu", 0, [], []))
    for name in names:
        ask(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [
        *cupy_kernels._OPTIONS,
        "-ftz=true",
        f"-arch={architecture}",
        "--ptxas-options=-v",
    ]
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), [option.encode() for option in options]
    )
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    assert status[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    result = Program(
        text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program),
        text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode(),
        log.decode(),
        [ask(nvrtc.nvrtcGetLoweredName(program, name.encode())) for name in names],
    )
    ask(nvrtc.nvrtcDestroyProgram(program))
    return result


def ask(answer):
    status, *values = answer
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    return values[0] if values else None


def text(size, content, program) -> bytes:
    memory = b" " * ask(size(program))
    ask(content(program, memory))
    return memory


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("scalar", WIDTHS)
def test_every_kernel_compiles_and_stays_in_registers(architecture, scalar):
    names = name_expressions(scalar)
    program = compiled(architecture, names)
    assert program.cubin.startswith(b"\x7fELF")
    assert len(set(program.lowered)) == len(names) == 34
    for lowered in program.lowered:
        assert b".text." + lowered in program.cubin
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) .*?, (\d+) ", program.log)
    assert frames == [("0", "0", "0")] * len(names)


def test_gpus_before_ampere_round_to_bfloat16_by_arithmetic():
    names = ["multi_step<BFloat16, 4>", "code<BFloat16, 8>"]
    assert "cvt.rn.bf16.f32" not in compiled("sm_75", names).ptx
    assert "cvt.rn.bf16.f32" in compiled("sm_80", names).ptx


@pytest.mark.parametrize(("scalar", "widths"), WIDTHS.items())
def test_sixteen_bytes_are_one_access(scalar, widths):
    ptx = compiled("sm_90", [f"code<{scalar}, {widths[1]}>"]).ptx
    lanes = {"float": "v4.f32", "double": "v2.f64"}.get(scalar, "v4.u32")
    assert f"ld.global.nc.{lanes}" in ptx
    assert f"st.global.{lanes}" in ptx


@pytest.mark.parametrize("kernel", ["multi_step", "code"])
@pytest.mark.parametrize("scalar", ["float", "Half", "BFloat16"])
def test_membranes_are_never_flushed_to_zero(kernel, scalar):
    ptx = compiled("sm_90", [f"{kernel}<{scalar}, 1>"]).ptx
    flushing = set(re.findall(r"\S+\.ftz\S*", ptx))
    # 1 / tau and rho arrive as float64
    assert flushing == {"cvt.rn.ftz.f32.f64"}
    assert {"mul.rn.f32", "fma.rn.f32", "set.ge.f32.f32"} <= set(ptx.split())


def test_no_header_is_needed():
    assert "#include" not in SOURCE
