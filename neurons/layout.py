"""How tensors of any layout become the dense rows that kernels take.

`order` is a list of axes from the slowest to the fastest in memory.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "as_channel_rows",
    "as_rows",
    "channels",
    "channels_last_order",
    "new_tensor",
    "order_of",
    "steps_first",
    "sum_to_threshold",
]


def order_of(x: Float[Tensor, "*neurons"]) -> list[int]:
    """The axes of `x` as they lie in memory; as they are, where it has gaps."""
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return order if x.permute(order).is_contiguous() else list(range(x.ndim))


def steps_first(order: list[int]) -> list[int]:
    """The order of [T, *neurons] for that of [*neurons]."""
    return [0, *(axis + 1 for axis in order)]


def channels_last_order(x: Float[Tensor, "*batch channels"]) -> list[int]:
    """The axes of `x` as they lie in memory, but for the last, which stays the last."""
    strides = x.stride()
    batch = sorted(range(x.ndim - 1), key=lambda axis: -strides[axis])
    return [*batch, x.ndim - 1]


def new_tensor(
    shape: Sequence[int | torch.SymInt],
    order: list[int],
    like: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Fresh memory of that shape, dense, with its axes in that order."""
    # not a permuted view: SpikingJelly detaches states in place
    strides: list[int | torch.SymInt] = [0] * len(order)
    distance: int | torch.SymInt = 1
    for axis in reversed(order):
        strides[axis] = distance
        distance *= shape[axis]
    return torch.empty_strided(shape, strides, dtype=dtype, device=like.device)


def as_rows(
    x_seq: Float[Tensor, " T *neurons"], order: list[int]
) -> Float[Tensor, "T N"]:
    """Every step in a row: a view where each step lies densely in that order."""
    rows = x_seq.permute(steps_first(order))
    if not rows[0].is_contiguous():
        rows = rows.contiguous()
    return rows.reshape(len(rows), -1)


def as_channel_rows(
    x: Float[Tensor, "*batch channels"], order: list[int]
) -> Float[Tensor, "R C"]:
    """Channels in rows: a view where neighbouring rows are equally far apart."""
    rows = x.permute(order).reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def channels(
    v_threshold: Float[Tensor, "*thresholds"], shape: Sequence[int], order: list[int]
) -> tuple[int, int]:
    """The axis of `shape` along which thresholds differ, and for how long one lasts.

    In a row neuron n has the threshold n // inner % C. Axis -1: there is only one.

    Raises:
        ValueError: thresholds that differ along several axes, or do not fit.
    """
    if v_threshold.numel() == 1:
        return -1, 1
    skipped = len(shape) - v_threshold.ndim
    axes = [skipped + i for i, size in enumerate(v_threshold.shape) if size != 1]
    if len(axes) != 1 or skipped < 0 or shape[axes[0]] != v_threshold.numel():
        raise ValueError(
            "thresholds may differ along one axis of the neurons, got the shape "
            f"{tuple(v_threshold.shape)} for neurons of shape {tuple(shape)}"
        )
    faster = order[order.index(axes[0]) + 1 :]
    return axes[0], math.prod(shape[i] for i in faster)


def sum_to_threshold(
    of_neurons: Float[Tensor, "*neurons"],
    axis: int,
    v_threshold: Float[Tensor, "*thresholds"],
) -> Float[Tensor, "*thresholds"]:
    """The sum over all neurons that share a threshold, always in the same order."""
    others = [i for i in range(of_neurons.ndim) if i != axis]
    summed = of_neurons.sum(others) if others else of_neurons
    return summed.reshape(v_threshold.shape)
