"""Ternary spikes as a picture no larger than the screen that shows it."""

from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32, Int8, Shaped
from torch import Tensor

__all__ = ["Array", "as_array", "spike_image", "unit_spikes"]

#: what the plots take
Array = Tensor | npt.NDArray[Any]

#: A spike keeps at least this share of its colour, however many cells share its pixel.
_FAINTEST_SPIKE = 0.35


def as_array(values: Shaped[Array, "..."]) -> npt.NDArray[Any]:
    """The values in NumPy, from any device and dtype (it has no bfloat16)."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu")
        return (values.float() if values.is_floating_point() else values).numpy()
    return values


def unit_spikes(spike_seq: Shaped[Array, "..."]) -> Int8[np.ndarray, "T N"]:
    """The spikes [T, N] as int8.

    Raises:
        ValueError: for other than two axes, and for other values than -1, 0 and +1.
    """
    if spike_seq.ndim != 2 or 0 in spike_seq.shape:
        raise ValueError(
            "spike_seq must be [T, N], time by neuron, neither of them empty, got the "
            f"shape {tuple(spike_seq.shape)}; the [T, tokens, N] of a coder becomes "
            "[tokens * T, N] by spike_seq.transpose(0, 1).flatten(0, 1)"
        )
    values = as_array(spike_seq)
    unit = np.isin(values, (-1, 0, 1))
    if not unit.all():
        raise ValueError(
            f"spikes must be -1, 0 or +1, got {values[~unit][0]:.4g}: pass unit spikes "
            "such as coder.encode(x), not decoded values"
        )
    return values.astype(np.int8)


def spike_image(
    spikes: Int8[np.ndarray, "T N"],
    steps: int,
    neurons: int,
    *,
    colours: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> Float32[np.ndarray, "rows columns 3"]:
    """The spikes as RGB, `steps` by `neurons` of them to a pixel; time runs along rows.

    A pixel is white where nothing fired, else the mean colour of what did: at full
    strength where most fired, weaker where fewer did, never so weak that a lone spike
    is lost. Pixels at the far edges may stand for fewer spikes.

    Args:
        spikes: -1, 0 and +1.
        steps: time steps in a pixel.
        neurons: neurons in a pixel.
        colours: RGB of +1 and of -1.
    """
    positive, negative = (
        _shares(spikes == sign, steps, neurons)[..., None] for sign in (1, -1)
    )
    fired = positive + negative
    plus, minus = np.asarray(colours, dtype=np.float32)
    colour = (positive * plus + negative * minus) / np.where(fired > 0, fired, 1)
    strength = fired / max(fired.max(), 1 / spikes.size)
    ink = np.where(fired > 0, _FAINTEST_SPIKE + (1 - _FAINTEST_SPIKE) * strength, 0)
    return (1 - ink * (1 - colour)).astype(np.float32)


def _shares(
    fired: npt.NDArray[np.bool_], steps: int, neurons: int
) -> npt.NDArray[np.float32]:
    """The share of `fired` [T, N] in each block of steps and neurons."""
    shares = fired.T.astype(np.float32)
    for axis, size in ((1, steps), (0, neurons)):
        starts = np.arange(0, shares.shape[axis], size)
        counts = np.diff(starts, append=shares.shape[axis])
        shares = np.add.reduceat(shares, starts, axis=axis)
        shares /= np.expand_dims(counts, 1 - axis)
    return shares
