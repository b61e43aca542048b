"""What stands in a row of tokens: padding, and documents that see no other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mar_snn.llamba.cache import LlambaCache

__all__ = ["convolve_documents", "convolve_token", "number_documents", "token_mask"]


def token_mask(
    attention_mask: Tensor | None, length: int, *, cached: bool
) -> Int[Tensor, "B L 1"] | None:
    """The mask of the last `length` tokens; None where there is nothing to mask."""
    if attention_mask is None or length == 1:
        return None
    mask = attention_mask[:, -length:].long()
    if cached and not bool(mask[:, -1].all()):
        raise ValueError(
            "attention_mask ends in padding, which would enter the recurrent state: "
            "pad on the left (tokenizer.padding_side = 'left')"
        )
    return mask[..., None]


def number_documents(
    seq_idx: Tensor, shape: torch.Size, cache: LlambaCache | None
) -> Int[Tensor, "B L"]:
    """Documents numbered from left to right, a new number at each change of seq_idx."""
    if cache is not None and cache.get_seq_length():
        raise ValueError(
            "seq_idx cannot go with a cache that holds tokens already: they belong to "
            "one document, which the next tokens go on with; leave seq_idx out"
        )
    if seq_idx.shape != shape:
        raise ValueError(
            f"seq_idx must have one number for each of the tokens, {tuple(shape)}, got "
            f"{tuple(seq_idx.shape)}"
        )
    return (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(dim=1)


def convolve_documents(
    x: Float[Tensor, "B channels M"],
    seq_idx: Int[Tensor, "B M"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
) -> Float[Tensor, "B channels L"]:
    """A depthwise convolution of M = L + taps - 1 inputs, each document by itself.

    It is summed tap by tap, with zeros for the inputs of other documents.
    """
    taps = weight.to(x.dtype).unbind(-1)
    length = x.shape[-1] - len(taps) + 1
    here = seq_idx[:, len(taps) - 1 :]
    y = x.new_zeros(()) if bias is None else bias.to(x.dtype)[:, None]
    for start, tap in enumerate(taps):
        foreign = seq_idx[:, start : start + length] != here
        seen = x[..., start : start + length].masked_fill(foreign[:, None], 0)
        y = y + tap[:, None] * seen
    return y


def convolve_token(
    x: Float[Tensor, "B 1 channels"],
    state: Float[Tensor, "B channels before"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
) -> tuple[Float[Tensor, "B 1 channels"], Float[Tensor, "B channels before"]]:
    """(output, last taps - 1 inputs) of a depthwise convolution of one token.

    A sum of products: `conv1d` takes several times as long for one token.
    """
    seen = torch.cat([state.mT.to(x.dtype), x], dim=1)
    y = (seen * weight.T.to(x.dtype)).sum(1, keepdim=True)
    return y if bias is None else y + bias.to(x.dtype), seen[:, 1:].mT
