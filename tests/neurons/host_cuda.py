"""CuPy without a GPU: atmn.cu compiled by g++, thread after thread on the CPU.

`HostCupy` stands where `cupy_kernels` looks for the module cupy. Names of kernels, the
order and types of arguments, addresses, strides, grids, caches, streams and devices are
then those of the true path; only the compiler and the launch are others.
"""

import ctypes
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from mar_snn.neurons import cupy_kernels, ops
from mar_snn.neurons.surrogate import KERNEL_SURROGATES

SHIM = Path(__file__).with_name("host_cuda_shim.h")

#: name in the source -> neighbours whose membranes, and whose codes, fill 16 bytes
WIDTHS = {"float": (4, 4), "double": (2, 2), "Half": (4, 8), "BFloat16": (4, 8)}

# no fused multiply-add, as with -fmad=false; a Pack is read from memory of scalars
_COMPILE = [
    *("g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"),
]


def name_expressions(scalar: str) -> list[str]:
    """Every kernel that can be asked for with tensors of `scalar`."""
    steps, codes = WIDTHS[scalar]
    backwards = [f"{scalar}, {name}" for name in KERNEL_SURROGATES]
    return [
        *(f"multi_step<{scalar}, {width}>" for width in (1, steps)),
        *(f"code<{scalar}, {width}>" for width in (1, codes)),
        *(
            f"multi_step_backward<{types}, {width}>"
            for types in backwards
            for width in (1, steps)
        ),
        *(
            f"code_backward<{types}, {width}>"
            for types in [*backwards, f"{scalar}, Straight"]
            for width in (1, codes)
        ),
    ]


class HostLibrary(NamedTuple):
    functions: ctypes.CDLL
    names: list[str]


@functools.cache
def host_library() -> HostLibrary:
    """Every kernel of atmn.cu, for this machine's processor."""
    names = [name for scalar in WIDTHS for name in name_expressions(scalar)]
    exports = "".join(f"EXPORT({i}, {name})\n" for i, name in enumerate(names))
    with TemporaryDirectory() as folder:
        source, library = Path(folder, "atmn.cpp"), Path(folder, "atmn.so")
        source.write_text(
            f'#include "{SHIM}"\n#include "{cupy_kernels._SOURCE}"\n{exports}'
        )
        command = [*_COMPILE, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return HostLibrary(ctypes.CDLL(str(library)), names)


#: device -> the address of PyTorch's current stream on it; tensors on the CPU say -1
STREAMS = {-1: 70, 0: 71, 1: 72}


@contextmanager
def host_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator["HostCupy"]:
    """Within, the operations run `cupy_kernels`, and these run on the host."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    cupy = HostCupy(host_library())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(ops, "kernels_for", lambda _backend, _device: cupy_kernels)
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device: SimpleNamespace(cuda_stream=STREAMS[device]),
    )
    cupy_kernels._compiled.cache_clear()
    yield cupy
    cupy_kernels._compiled.cache_clear()
    assert cupy.devices == cupy.streams == []


class Launch(NamedTuple):
    """One call of a kernel, and what was current while it was made."""

    kernel: str
    grid: tuple[int, int]
    block: tuple[int, int]
    arguments: tuple[int | float, ...]
    device: int
    stream: int


class HostCupy:
    """The part of CuPy's interface that `cupy_kernels` uses, on the host."""

    def __init__(self, library: HostLibrary) -> None:
        self.library = library
        self.launches: list[Launch] = []
        #: (name expression, device) in the order of their compilation
        self.compiled: list[tuple[str, int]] = []
        self.devices: list[int] = []
        self.streams: list[int] = []
        self.cuda = SimpleNamespace(
            Device=self._device, ExternalStream=self._external_stream
        )

    @contextmanager
    def _device(self, index: int) -> Iterator[None]:
        self.devices.append(index)
        try:
            yield
        finally:
            self.devices.pop()

    @contextmanager
    def _external_stream(self, pointer: int, device_id: int) -> Iterator[None]:
        assert device_id == self.devices[-1], "CuPy refuses a stream of another device"
        self.streams.append(pointer)
        try:
            yield
        finally:
            self.streams.pop()

    def RawModule(  # noqa: N802
        self, *, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]
    ) -> SimpleNamespace:
        assert code == cupy_kernels._SOURCE.read_text()
        assert options == ("-std=c++17", "-fmad=false")

        def get_function(name: str) -> Any:
            assert name in name_expressions, "NVRTC has lowered no such name"
            self.compiled.append((name, self.devices[-1]))
            return lambda grid, block, arguments: self._launch(
                Launch(
                    *(name, grid, block, arguments),
                    *(self.devices[-1], self.streams[-1]),
                )
            )

        return SimpleNamespace(get_function=get_function)

    def _launch(self, launch: Launch) -> None:
        assert min(launch.grid + launch.block) > 0
        assert launch.grid[1] < 2**16, "more blocks than CUDA takes along y"
        assert launch.block[0] * launch.block[1] <= 1024, "more threads than CUDA takes"
        number = self.library.names.index(launch.kernel)
        letters = getattr(self.library.functions, f"letters_{number}")
        letters.restype = ctypes.c_char_p
        # as CuPy does it: an int is 64 bits long, a float is a float64
        given = ["d" if type(a) is float else "i" for a in launch.arguments]
        taken = letters().decode()
        assert taken.replace("p", "i") == "".join(given), (launch.kernel, taken, given)
        values = [
            (ctypes.c_double if letter == "d" else ctypes.c_int64)(argument)
            for letter, argument in zip(taken, launch.arguments, strict=True)
        ]
        addresses = [ctypes.addressof(value) for value in values]
        getattr(self.library.functions, f"launch_{number}")(
            (ctypes.c_uint * 4)(*launch.grid, *launch.block),
            (ctypes.c_void_p * len(values))(*addresses),
        )
        self.launches.append(launch)
