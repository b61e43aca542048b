"""Modules of torch that run as one kernel, run again operation by operation.

Which kernel runs depends on the grad mode and the device, and what a module costs must
not. So where one was fused, its forward runs a second time without, to be counted.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["can_run_written_out", "run_written_out"]

_MODULES = (nn.TransformerEncoderLayer, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN)
#: A subclass may do more around the kernel, and that would be counted twice.
_FORWARDS = {cls.forward for cls in _MODULES}


def can_run_written_out(module: nn.Module, operands: tuple[Any, ...]) -> bool:
    """Whether a module that ran as one kernel on `operands` can run as operations."""
    nested = any(isinstance(value, Tensor) and value.is_nested for value in operands)
    return type(module).forward in _FORWARDS and not nested


def run_written_out(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Run the forward of a module again, operation by operation; changes nothing."""
    tensors = [*module.parameters(), *module.buffers()]
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        # mkldnn.flags would set more than this, with a warning
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # dropout between the layers draws again
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        module.forward(*args, **kwargs)
