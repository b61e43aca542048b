"""The ATMN node: the parameters and the state of the neuron, for SpikingJelly."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from mar_snn.neurons.backends import check_backend
from mar_snn.neurons.numbers import above_zero, is_number, is_whole
from mar_snn.neurons.ops import atmn_multi_step
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.spikes import declare_spikes, is_listening
from mar_snn.neurons.surrogate import (
    SurrogateFunction,
    check_surrogate,
    emits_spikes,
)

__all__ = ["ATMNNode"]


class ATMNNode(neuron.BaseNode):
    """Ternary spikes {-1, 0, +1}, a soft reset and a learnable threshold V = exp(a).

    The equations stand in `mar_snn.neurons.reference`. `tau` is the paper's: a step
    keeps 1 / tau of the membrane (any tau > 0), and the input is not scaled.
    SpikingJelly's tau keeps 1 - 1 / tau; `replace_neurons` converts one to the other.

    State: `v` is the float 0.0 until the first call and after `reset()`, then a tensor
    of the input's shape. A number stands for all neurons, and a tensor of another shape
    than the input's is followed by a start at rest, as in SpikingJelly. For 16-bit
    inputs it is kept in float32, so that T single steps and one multi-step call agree
    bit for bit; spikes have the input's dtype.

    Args:
        tau: time constant in steps, above zero.
        v_threshold: the initial V, above zero.
        v_reset: None; here to match SpikingJelly's signature.
        surrogate_function: any SpikingJelly surrogate; a new `Sigmoid()` if None.
        detach_reset: cut the gradient through the spike in the reset.
        step_mode: "s" for [N, ...], "m" for [T, N, ...].
        store_v_seq: keep the membrane of every step in `v_seq`.
        num_channels: None for one threshold, or one for each channel.
        channel_dim: the channel axis of the single-step tensor.
        fire_ratio: rho, fire at rho V and reset by V.
        backend: "torch", "native" (C, on CPUs), "triton" or "cupy" (on GPUs); "auto"
            takes the fastest that can run on the input's device without compiling C, or
            what the environment variable MAR_SNN_BACKEND names.

    Raises:
        ValueError: an argument out of range, or a `v_reset`.
        RuntimeError: a backend whose package is missing, or whose C cannot be compiled.
    """

    #: log of the threshold, [1] or [num_channels]; leave it out of weight decay
    a: nn.Parameter

    def __init__(
        self,
        tau: float | int = 2.0,
        v_threshold: float | int = 1.0,
        v_reset: float | None = None,
        surrogate_function: SurrogateFunction | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        num_channels: int | None = None,
        channel_dim: int = 1,
        fire_ratio: float | int = 1.0,
        backend: str = "auto",
    ) -> None:
        tau = above_zero("tau", tau)
        fire_ratio = above_zero("fire_ratio", fire_ratio)
        v_threshold = above_zero("v_threshold", v_threshold)
        if v_reset is not None:
            raise ValueError(
                f"ATMNNode resets by subtraction and has no v_reset, got {v_reset!r}: "
                "leave it None, or use SpikingJelly's TernaryLIFNode for a hard reset"
            )
        if num_channels is not None and not is_whole(num_channels):
            raise ValueError(f"num_channels must be None or >= 1, got {num_channels!r}")
        check_backend(backend)
        super().__init__(
            v_threshold=v_threshold,
            v_reset=None,
            surrogate_function=check_surrogate(surrogate_function)
            or surrogate.Sigmoid(),
            detach_reset=detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.tau = tau
        self.fire_ratio = fire_ratio
        self.num_channels = num_channels
        self.channel_dim = channel_dim
        self.backend = backend
        # shape (1,) and not (): FSDP refuses parameters without an axis; float32 even
        # under a 16-bit default dtype, like every later cast (see _apply)
        self.a = nn.Parameter(torch.empty(num_channels or 1, dtype=torch.float32))
        self.v_threshold = v_threshold

    @property
    def v_threshold(self) -> Float[Tensor, " channels"]:
        """The live threshold exp(a), [1] or [num_channels], at least float32."""
        return self.a.to(membrane_dtype(self.a.dtype)).exp()

    @v_threshold.setter
    def v_threshold(self, value: float | int | Tensor) -> None:
        # BaseNode.__init__ sets the attribute before the parameter exists
        if "a" not in self._parameters:
            return
        value = torch.as_tensor(value, dtype=torch.float64)
        if not value.is_meta and not ((value > 0.0) & value.isfinite()).all():
            raise ValueError(f"v_threshold must be finite and above zero, got {value}")
        if _is_sharded(self.a):
            raise ValueError(
                f"v_threshold is sharded, cannot set it to {value}: set it before "
                "fully_shard, or load a state_dict"
            )
        with torch.no_grad():
            self.a.copy_(value.log())

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        """The states as tensors of the input's shape: at rest where they do not fit.

        Raises:
            ValueError: a membrane that is no number and no tensor, or a complex one.
        """
        # the sum stands in for the first of no steps, which the kernels refuse in words
        x = inputs[0]
        if step_mode == "m":
            x = x[0] if len(x) else x.sum(0)
        dtype = membrane_dtype(x.dtype)
        v = states[0]
        if is_number(v):
            v = torch.full_like(x, float(v), dtype=dtype, requires_grad=False)
        elif isinstance(v, Tensor) and not v.is_complex():
            if v.shape in (x.shape, ()):
                v = v.to(device=x.device, dtype=dtype).expand(x.shape)
            else:
                v = torch.zeros_like(x, dtype=dtype, requires_grad=False)
        else:
            what = v.dtype if isinstance(v, Tensor) else repr(v)
            raise ValueError(
                f"the membrane v must be a real number or a tensor of them, got {what}:"
                " node.reset() puts it at rest"
            )
        return (v, *states[1:])

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """((spike,), (v,)) of one step; no state of the node is read or written."""
        spike_seq, v = self._run(inputs[0].unsqueeze(0), states[0])[:2]
        spike = spike_seq.squeeze(0)
        self._declare(spike_seq, spike)
        return (spike,), (v, *states[1:])

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **_: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """((spike_seq,), (v,)) of T steps; no state of the node is read or written."""
        spike_seq, v = self._run(inputs[0], states[0])[:2]
        self._declare(spike_seq, spike_seq)
        return (spike_seq,), (v, *states[1:])

    def multi_step_forward(
        self, x_seq: Float[Tensor, " T *neurons"]
    ) -> Float[Tensor, " T *neurons"]:
        """The spikes of T steps; updates `v`, and `v_seq` where it is stored."""
        (v,) = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        spike_seq, v, v_seq = self._run(x_seq, v, store_v_seq=self.store_v_seq)
        self._memories["v"] = v
        self.v_seq = v_seq
        self._declare(spike_seq, spike_seq)
        return spike_seq

    def _run(
        self, x_seq: Tensor, v: Tensor, *, store_v_seq: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return atmn_multi_step(
            x_seq,
            v,
            self._threshold_beside(x_seq.shape[1:]),
            tau=self.tau,
            fire_ratio=self.fire_ratio,
            surrogate_function=self.surrogate_function,
            detach_reset=self.detach_reset,
            store_v_seq=store_v_seq,
            backend=self.backend,
        )

    def _declare(self, spike_seq: Tensor, output: Tensor) -> None:
        if is_listening() and emits_spikes(self.surrogate_function):
            declare_spikes(self, spike_seq, output)

    def _threshold_beside(self, shape: torch.Size) -> Tensor:
        """The threshold, shaped to broadcast against a single-step tensor."""
        if self.num_channels is None:
            return self.v_threshold
        axes = len(shape)
        fits = -axes <= self.channel_dim < axes
        if not fits or shape[self.channel_dim] != self.num_channels:
            raise ValueError(
                f"expected {self.num_channels} channels on axis {self.channel_dim} of "
                f"the single-step input, got the shape {tuple(shape)}: set "
                "num_channels and channel_dim to match"
            )
        beside = [1] * axes
        beside[self.channel_dim] = self.num_channels
        return self.v_threshold.view(beside)

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,  # noqa: ARG002  SpikingJelly's own lacks what to_empty passes
    ) -> "ATMNNode":
        # log-thresholds move by steps that 16 bits round away: .half() and .bfloat16()
        # move them to the device and leave them in float32
        def at_least_float32(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.is_floating_point() and applied.element_size() < 4:
                return tensor.to(device=applied.device)
            return applied

        return super()._apply(at_least_float32)

    def extra_repr(self) -> str:
        with torch.no_grad():
            v_threshold = self.v_threshold
        if v_threshold.is_meta:
            threshold = "on meta"
        elif _is_sharded(self.a):  # to gather it, every process would have to print
            threshold = "sharded"
        elif self.num_channels is None:
            threshold = f"{v_threshold.item():.4g}"
        else:
            low, high = v_threshold.aminmax()
            threshold = f"{low.item():.4g}..{high.item():.4g}"
        return (
            f"v_threshold={threshold}, tau={self.tau:.4g}, "
            f"fire_ratio={self.fire_ratio:.4g}, num_channels={self.num_channels}, "
            f"channel_dim={self.channel_dim}, detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode}, backend={self.backend}"
        )


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Whether this process holds a part of it only, as under FSDP2."""
    return hasattr(parameter, "to_local")
