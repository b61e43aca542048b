"""Neuron and coder: share of the copy bandwidth, beside SpikingJelly's operators."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor

from gpu.timing import copy_rate, gradients_of, milliseconds, recorded_milliseconds
from mar_snn.neurons import ops, reference
from mar_snn.neurons.backends import available_backends
from mar_snn.neurons.reference import readout_weights

CHANNELS = 2048
#: elements of a code, and of all steps of a neuron
ELEMENTS = {"cuda": 2**27, "cpu": 2**16}
#: rows of a batch of 2048 tokens, as one layer of a model sees them
TOKENS = {"cuda": 2048, "cpu": 8}
TAU = 2.0


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """The bandwidth of a copy, then every case, the most telling ones first."""
    rate = copy_rate(device)
    yield {"case": "copy", "bytes_per_second": rate}
    backends = [n for n, why in available_backends(device).items() if not why]
    backends = [name for name in backends if name != "native"]
    for dtype, steps, kind in itertools.product(
        (torch.bfloat16, torch.float32), (4, 8), ("straight-through", "ATan")
    ):
        for row in code_rows(device, dtype, steps, kind, backends):
            yield row | {"share_of_copy": row["bytes"] / row["ms"] * 1e3 / rate}
    for dtype, steps in itertools.product((torch.float32, torch.bfloat16), (16, 4)):
        for row in step_rows(device, dtype, steps, backends):
            yield row | {"share_of_copy": row["bytes"] / row["ms"] * 1e3 / rate}
    yield from small_rows(device, backends)


def code_rows(
    device: torch.device, dtype: torch.dtype, steps: int, kind: str, backends: list[str]
) -> Iterator[dict[str, Any]]:
    """atmn_code in both directions: the bytes are x and y, and grad, x and grad_x."""
    x = torch.randn(ELEMENTS[device.type] // CHANNELS, CHANNELS, device=device)
    x, grad = x.to(dtype), torch.randn_like(x, dtype=dtype)
    v_threshold = torch.rand(CHANNELS, device=device) + 0.5
    weights = readout_weights("geometric", 0.5, steps)
    surrogates = (None, 1.0) if kind == "straight-through" else ("ATan", 2.0)
    how = (weights, 0.5, 2 / 3, *surrogates, False)
    case = {"case": "atmn_code", "dtype": str(dtype), "steps": steps, "gradient": kind}
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        name: (
            partial(torch.ops.mar_snn.atmn_code, x, v_threshold, *how, name),
            partial(
                torch.ops.mar_snn.atmn_code_backward, grad, x, v_threshold, *how, name
            ),
        )
        for name in backends
    }
    for name, both in ways.items():
        for direction, run, tensors in zip(
            ("forward", "backward"), both, (2, 3), strict=True
        ):
            yield case | {
                "name": name,
                "direction": direction,
                "ms": milliseconds(run, device),
                "bytes": tensors * x.nbytes,
            }
    if steps == 4 and dtype == torch.bfloat16:
        compiled = torch.compile(
            partial(
                reference.atmn_code,
                weights=weights,
                tau=0.5,
                fire_ratio=2 / 3,
                surrogate_function=None
                if kind == "straight-through"
                else surrogate.ATan(),
            )
        )
        with torch.no_grad():
            yield case | {
                "name": "reference, compiled",
                "direction": "forward",
                "ms": milliseconds(lambda: compiled(x, v_threshold), device),
                "bytes": 2 * x.nbytes,
            }


def step_rows(
    device: torch.device, dtype: torch.dtype, steps: int, backends: list[str]
) -> Iterator[dict[str, Any]]:
    """Neurons that are trained: x, spikes, membranes of 4 bytes; then the gradients."""
    neurons = ELEMENTS[device.type] // 16
    x_seq = torch.randn(steps, neurons, device=device).to(dtype).requires_grad_()
    a = torch.zeros(1, device=device, requires_grad=True)
    size, count = x_seq.element_size(), x_seq.numel()
    case = {"case": "multi_step", "dtype": str(dtype), "steps": steps}
    for name, run in step_contenders(a, backends).items():
        inputs = (x_seq, a) if name.startswith("ATMN") else (x_seq,)
        v = torch.zeros(neurons, device=device)
        # an operator's gradients do not depend on what else the call returns
        with torch.no_grad():
            inference = milliseconds(lambda run=run, v=v: run(x_seq, v), device)
        training = milliseconds(
            gradients_of(lambda *_, run=run, v=v: run(x_seq, v), *inputs), device
        )
        for direction, ms, moved in (
            ("inference", inference, 2 * size),
            ("forward and backward", training, 2 * (2 * size + 4)),
        ):
            yield case | {
                "name": name,
                "direction": direction,
                "ms": ms,
                "bytes": moved * count,
                "element_steps_per_second": 1e3 * count / ms,
            }


def step_contenders(
    a: Tensor, backends: list[str]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours by every backend, and SpikingJelly's fused neurons, from a membrane v."""
    ours = {"tau": TAU, "surrogate_function": surrogate.ATan()}
    theirs = {
        "surrogate_function": surrogate.ATan(),
        "v_reset": None,
        "decay_input": False,
    }
    w = torch.zeros((), device=a.device, requires_grad=True)
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        f"ATMN, {name}": lambda x, v, name=name: ops.atmn_multi_step(
            x, v, a.exp(), backend=name, **ours
        )[0]
        for name in backends
    }
    found["ATMN, reference"] = lambda x, v: reference.atmn_multi_step(
        x, v, a.exp(), **ours
    )[0]
    found["SpikingJelly's LIF"] = lambda x, v: functional.lif_multi_step(
        x, v=v, tau=TAU, **theirs
    )[0]
    found["SpikingJelly's PLIF"] = lambda x, v: functional.plif_multi_step(
        x, v=v, w=w, **theirs
    )[0]
    return found


def small_rows(device: torch.device, backends: list[str]) -> Iterator[dict[str, Any]]:
    """The coder of one layer of 2048 tokens: with the launch, and replayed."""
    x = torch.randn(TOKENS[device.type], CHANNELS, device=device).bfloat16()
    v_threshold = torch.rand(CHANNELS, device=device) + 0.5
    for name in backends:
        run = partial(
            torch.ops.mar_snn.atmn_code,
            *(x, v_threshold, readout_weights("geometric", 0.5, 4)),
            *(0.5, 2 / 3, None, 1.0, False, name),
        )
        for how, clock in (
            ("launched", milliseconds),
            ("replayed", recorded_milliseconds),
        ):
            yield {
                "case": "small code",
                "name": name,
                "how": how,
                "ms": clock(run, device),
            }
