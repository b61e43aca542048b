"""fla's own kernels beside the recurrence, on a CPU, for test_scan_backends.py.

    TRITON_INTERPRET=1 python interpreted_fla.py

Triton reads the environment where a kernel is decorated, and what is mended here of its
interpreter must not reach other tests: hence a process of its own.
"""

import builtins
import os
import warnings
from typing import Any

import torch
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

from mar_snn.llamba.scan import ssd_sequential
from mar_snn.llamba.scan_backends import fla_scan


class Index(int):
    """What a loop of a compiled kernel counts by: a number that knows `to`."""

    def to(self, dtype: Any) -> "Index":
        return self


def mend() -> None:
    """What the interpreter of Triton 3.6 does not do."""
    patch_tensor = interpreter._patch_lang_tensor

    def index_by_number(tensor: Any, scope: Any) -> None:
        # a number is an array of one, which NumPy from 2.4 on refuses to count by
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def counting(*bounds: Any) -> Any:
        return map(Index, builtins.range(*(int(bound) for bound in bounds)))

    interpreter._patch_lang_tensor = index_by_number
    # no device, no timing: the first configuration is as right as the others
    Autotuner.do_bench = property(lambda self: lambda *args, **kwargs: 1.0)
    from fla.ops.common import chunk_h, chunk_o

    chunk_h.range = chunk_o.range = counting


def compare(length: int, groups: int, lengths: tuple[int, ...] = ()) -> None:
    """Outputs and every gradient of two rows, from a state that is not zero."""
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    inputs = {
        "x": torch.randn(2, length, 4, 16),
        "b": torch.randn(2, length, groups, 32) / 6,
        "c": torch.randn(2, length, groups, 32),
        "log_decay": -torch.rand(2, length, 4),
        "state": torch.randn(2, 4, 16, 32),
    }
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    seq_idx = None
    if lengths:
        one = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        seq_idx = torch.stack([one, torch.zeros_like(one)])
    results = []
    for scan in (ssd_sequential, fla_scan):
        y, state = scan(**inputs, seq_idx=seq_idx)
        loss = (y * y.detach().cos()).sum() + (state * state.detach().sin()).sum()
        results.append((y, state, *torch.autograd.grad(loss, tuple(inputs.values()))))
    for result, expected in zip(
        reversed(results[1]), reversed(results[0]), strict=True
    ):
        bound = 1e-4 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(result, expected, rtol=0, atol=bound)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # fla: there is no device
    mend()
    compare(1, 4)
    compare(23, 2)
    compare(70, 4)
    compare(75, 2, lengths=(1, 66, 8))
