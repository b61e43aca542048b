"""Where Triton kernels run while they are tested."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def triton_device() -> Iterator[torch.device]:
    """The CUDA device or else the CPU, on which Triton then interprets its kernels.

    Triton reads the environment where a kernel is decorated, so the module of kernels
    is imported afresh, here and by whoever comes after. Tests outside and their child
    processes see nothing of it.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("TRITON_INTERPRET", "1")
        _mend_the_interpreter(patch)
        _forget_kernels()
        yield torch.device("cpu")
    _forget_kernels()


def _forget_kernels() -> None:
    # not above: there the shape checker would come too late to see the modules
    from mar_snn.neurons import backends

    sys.modules.pop("mar_snn.neurons.triton_kernels", None)
    backends.kernels_for.cache_clear()


def _mend_the_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Where the interpreter of Triton 3.6 does what no device does."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cut_off, patch_tensor = builder.cast_impl, interpreter._patch_lang_tensor

    def index_by_number(tensor: Any, scope: Any) -> None:
        # a number is an array of one, which NumPy from 2.4 on refuses to count by
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def round_to_bfloat16(self: Any, src: Any, dst_type: Any) -> Any:
        # float32 is cut off, where a device rounds to the nearest
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cut_off(self, src, dst_type)
        rounded = torch.from_numpy(src.data).to(torch.bfloat16).view(torch.uint16)
        return interpreter.TensorHandle(rounded.numpy(), tl.bfloat16)

    def add_up(tensor: Any, axis: int) -> Any:
        # Triton's own is for devices where Triton was imported before all this
        return tl.reduce(tensor, axis, tl.standard._sum_combine)

    patch.setattr(interpreter, "_patch_lang_tensor", index_by_number)
    patch.setattr(builder, "cast_impl", round_to_bfloat16)
    patch.setattr(tl, "sum", add_up)
