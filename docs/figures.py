"""Draws the pictures of the documentation that need no trained model."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons.surrogate import KERNEL_SURROGATES, ternary_spike

IMAGES = Path(__file__).parent / "images"


def surrogates() -> None:
    """The ternary step at V = 1 and the slopes that stand in for its derivative."""
    figure, (step, slope) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    threshold = torch.ones(1)
    for name in KERNEL_SURROGATES:
        h = torch.linspace(-3.0, 3.0, 601, requires_grad=True)
        surrogate_function = getattr(surrogate, name)()
        spikes = ternary_spike(h, threshold, surrogate_function)
        (of_h,) = torch.autograd.grad(spikes.sum(), h)
        label = f"{name}, alpha = {surrogate_function.alpha:g}"
        slope.plot(h.detach(), of_h, label=label, linewidth=1.3)
    step.step(h.detach(), spikes.detach(), color="black", where="post")
    step.set(title="forward", ylabel="spike s", yticks=[-1, 0, 1])
    slope.set(title="backward", ylabel="slope ds/dh")
    for ax in (step, slope):
        ax.set(xlabel="membrane h / V", xticks=range(-3, 4))
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    figure.savefig(IMAGES / "surrogates.png", dpi=150)


if __name__ == "__main__":
    surrogates()
