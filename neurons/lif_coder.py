"""The binary LIF coder: the baseline that the ATMN coder is measured against."""

import torch
from jaxtyping import Float
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from mar_snn.neurons.numbers import is_number, whole
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.spikes import declare_spikes, is_listening
from mar_snn.neurons.surrogate import (
    SurrogateFunction,
    check_surrogate,
    emits_spikes,
)

__all__ = ["LIFCoder"]


class LIFCoder(nn.Module):
    """The rate of T binary spikes of SpikingJelly's LIF neuron: [..., C] -> [..., C].

    The contract of `ATMNCoder`. The input is fed at each of the T steps, in units of
    the channel's threshold V; a resting neuron answers with

        h[t] = v[t-1] / tau + x / V
        s[t] = [h[t] >= 1]
        v[t] = h[t] - s[t]
        y    = V / T sum_t s[t]

    so a code has T + 1 values, all of one sign. The thresholds are fixed: `calibrate`
    fits them, training does not move them.

    Args:
        num_channels: C, the size of the last axis.
        time_steps: T, spikes for each value.
        tau: a step keeps 1 / tau of the membrane; 1 does not leak. (SpikingJelly's own
            tau keeps 1 - 1 / tau: the two agree at 2.)
        v_threshold: the initial threshold of all channels.
        surrogate_function: a new `ATan()` if None.
        detach_reset: cut the gradient through the spike in the reset.

    Raises:
        ValueError: an argument out of range.
    """

    #: what the projection gets is a sum of spike planes; V / T folds into its weights
    readout = "sum"

    #: the thresholds, [C]
    v_threshold: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        time_steps: int = 4,
        tau: float | int = 2.0,
        v_threshold: float | int = 1.0,
        surrogate_function: SurrogateFunction | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        num_channels = whole("num_channels", num_channels)
        time_steps = whole("time_steps", time_steps)
        if not (is_number(tau) and 1.0 <= tau < float("inf")):
            raise ValueError(
                f"a LIF membrane leaks: tau must be at least 1, got {tau!r}; 1 keeps "
                "all of the membrane, 2 half of it"
            )
        if not (is_number(v_threshold) and 0.0 < v_threshold < float("inf")):
            raise ValueError(f"v_threshold must be above zero, got {v_threshold!r}")
        self.neuron = neuron.LIFNode(
            tau=float(tau / (tau - 1.0)) if tau > 1.0 else float("inf"),
            decay_input=False,
            v_reset=None,
            surrogate_function=check_surrogate(surrogate_function) or surrogate.ATan(),
            detach_reset=detach_reset,
            step_mode="m",
        )
        self.num_channels = num_channels
        self.time_steps = time_steps
        self.tau = float(tau)
        #: w[t] of the read-out
        self.weights = (1.0 / time_steps,) * time_steps
        thresholds = torch.full((num_channels,), float(v_threshold))
        self.register_buffer("v_threshold", thresholds)

    def forward(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The decoded value of `x`, in its dtype."""
        spike_seq = self.encode(x)
        decoded = self.decode(spike_seq)
        if is_listening() and emits_spikes(self.neuron.surrogate_function):
            declare_spikes(self, spike_seq.detach(), decoded)
        return decoded

    def encode(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "time_steps *batch channels"]:
        """The spikes 0 and 1 of a resting neuron that is fed x at every step."""
        return self._encode(x, self.v_threshold)

    def decode(
        self, spike_seq: Float[Tensor, "time_steps *batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The value V / T sum_t s[t] of the spikes, in their dtype."""
        return self._decode(spike_seq, self.v_threshold)

    def code(
        self,
        x: Float[Tensor, "*batch channels"],
        v_threshold: Float[Tensor, " thresholds"],
    ) -> Float[Tensor, "*batch channels"]:
        """The decoded value of `x` at other thresholds than the coder's."""
        return self._decode(self._encode(x, v_threshold), v_threshold)

    def _encode(self, x: Tensor, v_threshold: Tensor) -> Tensor:
        dtype = membrane_dtype(x.dtype)
        if x.shape[-1:] != (self.num_channels,):
            raise ValueError(
                f"expected {self.num_channels} channels on the last axis, got the "
                f"shape {tuple(x.shape)}"
            )
        current = x.to(dtype) / v_threshold.to(dtype)
        (spike_seq,), _ = self.neuron.multi_step_functional_forward(
            (current.expand(self.time_steps, *x.shape),), (torch.zeros_like(current),)
        )
        return spike_seq.to(x.dtype)

    def _decode(self, spike_seq: Tensor, v_threshold: Tensor) -> Tensor:
        if spike_seq.shape[0] != self.time_steps:
            raise ValueError(
                f"expected the spikes of {self.time_steps} time steps on the first "
                f"axis, got the shape {tuple(spike_seq.shape)}"
            )
        dtype = membrane_dtype(spike_seq.dtype)
        rate = spike_seq.sum(0, dtype=dtype) / self.time_steps
        return (rate * v_threshold.to(dtype)).to(spike_seq.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, time_steps={self.time_steps}, tau={self.tau:.4g}"
