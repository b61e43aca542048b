"""The ATMN coder: a dense value becomes T ternary spikes and what they add up to.

This is what stands before a linear projection. The projection of the decoded value is
the weighted sum of the projections of the spikes, so training multiplies once, and an
event-driven machine only adds.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from mar_snn.neurons import ops
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.numbers import whole
from mar_snn.neurons.reference import (
    atmn_decode,
    atmn_encode,
    membrane_dtype,
    readout_weights,
)
from mar_snn.neurons.spikes import declare_spikes, is_listening
from mar_snn.neurons.surrogate import (
    SurrogateFunction,
    check_surrogate,
    emits_spikes,
)

__all__ = ["ATMNCoder"]

Gradient = Literal["straight_through", "surrogate"]


class ATMNCoder(nn.Module):
    """The decoded value of x after T ternary spikes: [..., C] -> [..., C].

    `coder(x)` equals `coder.decode(coder.encode(x))` bit for bit, without building
    the spikes; backward recomputes, so memory does not grow with T. No state is kept
    between calls. One learnable threshold for each channel of the last axis.

    Args:
        num_channels: C, the size of the last axis.
        time_steps: T, spikes for each value.
        tau: a step keeps 1 / tau of the membrane; 0.5 makes binary digits.
        readout: "geometric" weights spike t by tau**t, "sum" by 1.
        fire_ratio: rho, fire at rho V and reset by V.
        v_threshold: the initial threshold of all channels.
        surrogate_function: for gradient="surrogate"; a new `ATan()` if None.
        gradient: "straight_through" passes the gradient where the code does not
            saturate; "surrogate" goes through the T steps in units of the threshold.
        detach_reset: cut the surrogate gradient through the spike in the reset.
        backend: as for `ATMNNode`.

    Raises:
        ValueError: an argument out of range.
        RuntimeError: a backend whose package is missing.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        time_steps: int = 4,
        tau: float | int = 0.5,
        readout: str = "geometric",
        fire_ratio: float | int = 2 / 3,
        v_threshold: float | int = 1.0,
        surrogate_function: SurrogateFunction | None = None,
        gradient: str = "straight_through",
        detach_reset: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        time_steps = whole("time_steps", time_steps)
        if gradient not in get_args(Gradient):
            raise ValueError(
                f"gradient must be 'straight_through' or 'surrogate', got {gradient!r}"
            )
        #: holds the thresholds and the surrogate; the coder never calls it
        self.neuron = ATMNNode(
            tau,
            v_threshold,
            surrogate_function=check_surrogate(surrogate_function) or surrogate.ATan(),
            detach_reset=detach_reset,
            step_mode="m",
            num_channels=num_channels,
            channel_dim=-1,
            fire_ratio=fire_ratio,
            backend=backend,
        )
        self.num_channels = num_channels
        self.time_steps = time_steps
        self.tau = self.neuron.tau
        self.readout = readout
        self.fire_ratio = self.neuron.fire_ratio
        self.gradient = gradient
        #: w[t] of the read-out
        self.weights = readout_weights(readout, self.tau, time_steps)

    @property
    def v_threshold(self) -> Float[Tensor, " channels"]:
        """The live thresholds, [C]; those of `neuron`."""
        return self.neuron.v_threshold

    @v_threshold.setter
    def v_threshold(self, value: float | int | Tensor) -> None:
        self.neuron.v_threshold = value

    def forward(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The decoded value of `x`, in its dtype."""
        if self._decodes_in_c(x):
            return self._in_c(x)
        decoded = self.code(x, self.v_threshold)
        if is_listening() and emits_spikes(self.neuron.surrogate_function):
            declare_spikes(self, self._spikes_of(x), decoded)
        return decoded

    def code(
        self,
        x: Float[Tensor, "*batch channels"],
        v_threshold: Float[Tensor, " thresholds"],
    ) -> Float[Tensor, "*batch channels"]:
        """The decoded value of `x` at other thresholds than the coder's."""
        self._check_channels(x)
        node, dynamics = self.neuron, self._dynamics()
        spiking = emits_spikes(node.surrogate_function)
        if spiking and self.gradient == "straight_through":
            dynamics["surrogate_function"] = None
        return ops.atmn_code(
            x, v_threshold, self.weights, **dynamics, backend=node.backend
        )

    def encode(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "time_steps *batch channels"]:
        """The spikes -1, 0, +1 of an `ATMNNode` that is fed [x, 0, ..., 0]."""
        self._check_channels(x)
        return atmn_encode(
            x,
            self.neuron.v_threshold,
            time_steps=self.time_steps,
            **self._dynamics(),
        )

    def decode(
        self, spike_seq: Float[Tensor, "time_steps *batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The value V sum_t w[t] s[t] of the spikes, in their dtype."""
        if spike_seq.shape[0] != self.time_steps:
            raise ValueError(
                f"expected the spikes of {self.time_steps} time steps on the first "
                f"axis, got the shape {tuple(spike_seq.shape)}"
            )
        self._check_channels(spike_seq)
        return atmn_decode(spike_seq, self.neuron.v_threshold, self.weights)

    def firing_rate(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch"]:
        """The spikes of `x` per channel and step, with the surrogate's gradient.

        A silent neuron has one too, towards the sign its membrane has; so the rate can
        be drawn up as well as down. It runs in units of the threshold and stores the
        [T, ...] spikes, unlike `forward`.
        """
        self._check_channels(x)
        v_seq: Any  # there is one, for it is asked for
        spike_seq, _, v_seq = ops.atmn_multi_step(
            self._fed(x / self.neuron.v_threshold),
            torch.zeros_like(x),
            torch.ones_like(self.neuron.v_threshold),
            **self._dynamics(),
            store_v_seq=True,
            backend=self.neuron.backend,
        )
        sign = torch.where(spike_seq == 0, v_seq.sign(), spike_seq).detach()
        return (spike_seq * sign).mean((0, -1))

    def _decodes_in_c(self, x: Tensor) -> bool:
        """Whether nothing needs the operation that `code` is for PyTorch."""
        return (
            self.neuron.backend == "native"
            and x.is_cpu
            and x.dtype in (torch.float32, torch.bfloat16)
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            and not is_listening()
            and emits_spikes(self.neuron.surrogate_function)
        )

    def _in_c(self, x: Tensor) -> Tensor:
        from mar_snn.neurons.native_kernels import run_code

        self._check_channels(x)
        v_threshold = self.v_threshold.float()
        return run_code(x, v_threshold, self.weights, self.tau, self.fire_ratio)

    @torch.no_grad()
    def _spikes_of(self, x: Tensor) -> Tensor:
        """What `encode` returns, by the kernels that made the code."""
        spike_seq, _, _ = ops.atmn_multi_step(
            self._fed(x),
            torch.zeros_like(x),
            self.neuron.v_threshold,
            **self._dynamics(),
            backend=self.neuron.backend,
        )
        return spike_seq

    def _fed(self, x: Tensor) -> Tensor:
        """[x, 0, ..., 0], what the neuron is fed."""
        return torch.cat([x[None], x.new_zeros(self.time_steps - 1, *x.shape)])

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, time_steps={self.time_steps}, tau={self.tau:.4g}, "
            f"readout={self.readout}, fire_ratio={self.fire_ratio:.4g}, "
            f"gradient={self.gradient}"
        )

    def _check_channels(self, x: Tensor) -> None:
        membrane_dtype(x.dtype)  # which refuses integers
        if x.ndim == 0 or x.shape[-1] != self.num_channels:
            raise ValueError(
                f"expected {self.num_channels} channels on the last axis, got the "
                f"shape {tuple(x.shape)}"
            )

    def _dynamics(self) -> dict[str, Any]:
        return {
            "tau": self.tau,
            "fire_ratio": self.fire_ratio,
            "surrogate_function": self.neuron.surrogate_function,
            "detach_reset": self.neuron.detach_reset,
        }
