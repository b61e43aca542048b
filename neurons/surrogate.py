"""The two-sided (ternary) surrogate, built from any surrogate of SpikingJelly."""

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SurrogateFunction", "emits_spikes", "surrogate_backward", "ternary_spike"]

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


def emits_spikes(surrogate_function: SurrogateFunction) -> bool:
    """Whether the forward pass is the step function and not its smooth primitive."""
    return bool(getattr(surrogate_function, "spiking", True))


def surrogate_backward(
    surrogate_function: SurrogateFunction,
    grad: Float[Tensor, "*neurons"],
    x: Float[Tensor, "*neurons"],
) -> Float[Tensor, "*neurons"]:
    """`grad` times the surrogate's derivative at `x`.

    SpikingJelly's own formula, `surrogate_function.backward(grad, x, **parameters)`,
    where the class has one; autograd through the surrogate where it has none.
    """
    parameters = _backward_parameters(surrogate_function)
    if parameters is not None and emits_spikes(surrogate_function):
        return surrogate_function.backward(  # type: ignore[attr-defined]
            grad, x, **parameters
        )
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad_x,) = torch.autograd.grad(surrogate_function(x), x, grad)
    return grad_x


def _backward_parameters(
    surrogate_function: SurrogateFunction,
) -> dict[str, object] | None:
    """What `backward` wants beside (grad, x); None where it cannot be called."""
    backward = getattr(surrogate_function, "backward", None)
    if backward is None:
        return None
    names = list(inspect.signature(backward).parameters)[2:]
    # DeterministicPass.backward asks for an alpha which the class does not have
    if not all(hasattr(surrogate_function, name) for name in names):
        return None
    return {name: getattr(surrogate_function, name) for name in names}
