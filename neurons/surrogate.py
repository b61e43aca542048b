"""The two-sided (ternary) surrogate, built from any surrogate of SpikingJelly."""

from collections.abc import Callable

from jaxtyping import Float
from spikingjelly.activation_based import surrogate
from torch import Tensor

__all__ = [
    "KERNEL_SURROGATES",
    "SurrogateFunction",
    "check_surrogate",
    "emits_spikes",
    "kernel_surrogate",
    "ternary_spike",
]

#: classes of `spikingjelly.activation_based.surrogate` that kernels know by name
KERNEL_SURROGATES = (
    "Sigmoid",
    "ATan",
    "PiecewiseQuadratic",
    "PiecewiseExp",
    "SoftSign",
    "SuperSpike",
    "Erf",
)

#: A step function forward and a smooth one backward: an instance of one of the classes
#: of `spikingjelly.activation_based.surrogate`, or any callable that behaves like one.
SurrogateFunction = Callable[[Tensor], Tensor]


def ternary_spike(
    h: Float[Tensor, "*neurons"],
    fire_threshold: Float[Tensor, "*#neurons"],
    surrogate_function: SurrogateFunction,
) -> Float[Tensor, "*neurons"]:
    """Spikes -1, 0, +1: sg(h - fire_threshold) - sg(-h - fire_threshold).

    Both thresholds are inclusive, because SpikingJelly's step function is 1 at zero;
    NaN fires nothing. With `surrogate_function.spiking = False` the same difference of
    the continuous primitive comes back.
    """
    positive = surrogate_function(h - fire_threshold)
    return positive - surrogate_function(-h - fire_threshold)


def check_surrogate(
    surrogate_function: SurrogateFunction | None,
) -> SurrogateFunction | None:
    """The surrogate itself; None stands for a default.

    Raises:
        ValueError: for a class in the place of its instance, or what cannot be called.
    """
    is_class = isinstance(surrogate_function, type)
    if is_class or not (surrogate_function is None or callable(surrogate_function)):
        raise ValueError(
            "surrogate_function must be a function of a tensor, such as the instance "
            f"surrogate.ATan(), got {surrogate_function!r}"
        )
    return surrogate_function


def emits_spikes(surrogate_function: SurrogateFunction) -> bool:
    """Whether the forward pass is the step function and not its smooth primitive."""
    return bool(getattr(surrogate_function, "spiking", True))


def kernel_surrogate(
    surrogate_function: SurrogateFunction,
) -> tuple[str, float] | None:
    """The name and alpha under which kernels know the surrogate; None if they do not.

    They know SpikingJelly's own classes with a number for alpha, while spiking.
    """
    name = type(surrogate_function).__name__
    alpha = getattr(surrogate_function, "alpha", None)
    if (
        name in KERNEL_SURROGATES
        and type(surrogate_function) is getattr(surrogate, name)
        and isinstance(alpha, int | float)
        and emits_spikes(surrogate_function)
    ):
        return name, float(alpha)
    return None
