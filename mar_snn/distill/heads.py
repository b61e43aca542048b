"""The head, a language model's last linear map, and what becomes of its output."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["UNCHANGED", "LogitTransform", "head_parameters", "logit_transform"]


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model makes of its head's output z: soft_cap · tanh(scale · z / soft_cap).

    Without a soft cap it is scale · z.

    Raises:
        ValueError: a scale that is zero or no number, or a soft cap not above zero.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(
                f"scale must be a finite number other than 0, got {self.scale}"
            )
        if self.soft_cap is not None and not 0 < self.soft_cap < math.inf:
            raise ValueError(
                f"soft_cap must be above zero, or None for none, got {self.soft_cap}"
            )

    def __call__(self, z: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "..."]:
        """The logits of the head's output z."""
        if self.soft_cap is None:
            return z * self.scale
        return self.soft_cap * torch.tanh(z * (self.scale / self.soft_cap))


#: logits that are the head's output
UNCHANGED = LogitTransform()


@torch.no_grad()
def logit_transform(model: Any) -> LogitTransform | None:
    """What stands between a causal language model's head and its logits.

    None: something that is no `LogitTransform`, or a head that is not simply linear
    (adapters, quantised weights). The logits must then come from the model itself.

    It is measured: the model runs on one token, the output of its head is replaced by
    known numbers, and the logits say what became of them. Names in a configuration
    would not do, since `logits_scaling` divides in Granite and multiplies in
    HyperCLOVA X; and models that are not known by name are found out too.

    Args:
        model: a transformers causal language model, not compiled. Where it is sharded,
            every process has to call.
    """
    head = model.get_output_embeddings()
    if head is None or type(head).forward is not nn.Linear.forward:
        return None
    if head.weight.is_meta or isinstance(head.weight, FakeTensor):
        return UNCHANGED  # there are no numbers to measure with, nor to be wrong
    probe = torch.linspace(
        -50.0, 50.0, head.out_features, dtype=torch.float32, device=model.device
    )
    # far below every cap, where a tanh is a line, and far above, where it is flat
    probe[0], probe[-1] = 2.0**-12, 2.0**20
    replace = head.register_forward_hook(lambda *_: probe.expand(1, 1, -1).clone())
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        logits = model(input_ids=token, use_cache=False).logits.float()
    finally:
        replace.remove()
    if logits.shape != (1, 1, len(probe)):
        return None
    low, high = logits[0, 0, [0, -1]].tolist()
    scale = low / 2.0**-12
    if not math.isfinite(scale) or scale == 0:
        return None
    bends = not math.isclose(high, scale * 2.0**20, rel_tol=1e-4)
    if bends and not 0 < abs(high) < math.inf:
        return None
    transform = LogitTransform(scale, abs(high) if bends else None)
    # every word, so that one with a bias, a mask or a scale of its own is seen
    fits = torch.allclose(transform(probe), logits[0, 0], rtol=1e-4, atol=1e-4)
    return transform if fits else None


def head_parameters(head: nn.Module | Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight [vocab, hidden] and bias [vocab] of a head, whole where it is sharded."""
    if isinstance(head, Tensor):
        return _whole(head), None
    bias = getattr(head, "bias", None)
    return _whole(head.weight), None if bias is None else _whole(bias)


def _whole(parameter: Any) -> Tensor:
    """The parameter itself, or all of it where FSDP2 left this process a part."""
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import Partial

    # every process has the gradient of its own tokens, and FSDP takes the mean of all:
    # without a word DTensor would take each process's gradient for that of all
    mesh = parameter.device_mesh
    whole = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda grad: grad / mesh.size())
    return whole
