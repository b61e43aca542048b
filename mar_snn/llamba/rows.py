"""What stands in a row of tokens: padding, and documents that see no other."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mar_snn.llamba.cache import LlambaCache

__all__ = [
    "Padding",
    "convolve_documents",
    "convolve_token",
    "find_padding",
    "last_inputs",
    "number_documents",
]


class Padding(NamedTuple):
    """Where a batch has tokens and where padding, which nothing may remember.

    With its padding behind its tokens a row is the row without padding, and then some
    that no token sees: so the convolution reads it. The scan reads it as it is.
    """

    is_token: Bool[Tensor, "B L"]
    #: places of the tokens from left to right, then those of the padding
    order: Int[Tensor, "B L"]
    #: and where each of them is in that order
    rank: Int[Tensor, "B L"]

    def behind(self, t: Tensor) -> Tensor:
        """`t` [B, L, ...] with the padding behind the tokens."""
        return _take(t, self.order)

    def between(self, t: Tensor) -> Tensor:
        """`t` as it was before `behind`."""
        return _take(t, self.rank)


def _take(t: Tensor, places: Int[Tensor, "B M"]) -> Tensor:
    """[B, M, ...]: the entries of each row of `t` at its places."""
    return t.take_along_dim(places.view(*places.shape, *[1] * (t.dim() - 2)), dim=1)


def find_padding(
    attention_mask: Any, shape: torch.Size, cache: LlambaCache | None
) -> Padding | None:
    """Where the tokens of this shape are padding; None where the mask has only ones.

    That is looked up where nothing waits for it: on a CPU, and where a prompt enters a
    cache. Elsewhere, and in a graph, the mask is applied whatever it holds.

    Raises:
        ValueError: where the mask does not say of each token whether it is padding.
    """
    if attention_mask is None:
        return None
    batch, length = shape
    seen = 0 if cache is None else cache.get_seq_length()
    given = getattr(attention_mask, "shape", type(attention_mask).__name__)
    fits = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
    if not (fits and given[0] in (1, batch) and given[1] in (length, seen + length)):
        raise ValueError(
            "attention_mask must have a 1 for each token and a 0 for each padding, in "
            f"the shape of the tokens, {(batch, length)}, or with the {seen} before "
            f"them that the cache has read, got {given}: masks of an attention, of "
            "other shapes, say nothing to a convolution and a scan"
        )
    mask = attention_mask[:, given[1] - length :].expand(batch, -1)
    waits = mask.device.type != "cpu" and (cache is None or length == 1)
    if not waits and not torch.compiler.is_compiling():
        ones = mask == 1
        all_ones, known = torch.stack([ones.all(), (ones | (mask == 0)).all()]).tolist()
        if not known:
            raise ValueError(
                "attention_mask must hold only 1, for a token, and 0, for padding, got "
                f"{mask.unique().tolist()}: additive masks are not understood, and "
                "the documents of a row are numbered by seq_idx"
            )
        if all_ones:
            return None
    is_token = mask.bool()
    order = is_token.long().argsort(dim=1, descending=True, stable=True)
    return Padding(is_token, order, order.argsort(dim=1))


def number_documents(
    seq_idx: Tensor,
    shape: torch.Size,
    cache: LlambaCache | None,
    padding: Padding | None,
) -> Int[Tensor, "B L"]:
    """Documents numbered from left to right, a new number at each change of seq_idx.

    Padding belongs to the document of the token before it.
    """
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
    if padding is not None:
        places = torch.arange(shape[1], device=seq_idx.device)
        tokens = (places * padding.is_token).cummax(dim=1).values
        seq_idx = seq_idx.gather(1, tokens)
    return (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(dim=1)


def last_inputs(t: Tensor, before: int, padding: Padding | None) -> Tensor:
    """The `before` entries of `t` [B, M, ...] up to the last token's.

    `t` is `before` older entries, then those of the tokens and the padding `behind`.
    """
    if padding is None:
        return t[:, t.shape[1] - before :]
    places = torch.arange(before, device=t.device)
    return _take(t, padding.is_token.sum(1, keepdim=True) + places)


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
    padding: Padding | None = None,
) -> tuple[Float[Tensor, "B 1 channels"], Float[Tensor, "B channels before"]]:
    """(output, last taps - 1 inputs) of a depthwise convolution of one token.

    A sum of products: `conv1d` takes several times as long for one token.
    """
    seen = torch.cat([state.mT.to(x.dtype), x], dim=1)
    y = (seen * weight.T.to(x.dtype)).sum(1, keepdim=True)
    last = last_inputs(seen, state.shape[-1], padding)
    return y if bias is None else y + bias.to(x.dtype), last.mT
