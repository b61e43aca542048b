"""Products with the weight of a head, tile of words by tile of words, in float32."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_product", "product_dtype", "score", "tiles"]

#: elements of a tile: as many of a weight are copied to another dtype at a time
_TILE = 2**24


def score(
    inputs: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    *,
    out: Float[Tensor, "rows words"],
) -> None:
    """The head's output for its first words."""
    for words in tiles(weight, out.shape[1]):
        tile = out[:, words]
        if bias is None:
            tile.zero_()
        else:
            tile.copy_(bias[words].expand_as(tile))
        add_product(tile, inputs, weight[words].to(inputs.dtype).T)


def tiles(weight: Float[Tensor, "vocab hidden"], vocab_size: int) -> Iterator[slice]:
    """The words of each tile of the weight."""
    words = max(_TILE // weight.shape[1], 1)
    return (
        slice(start, min(start + words, vocab_size))
        for start in range(0, vocab_size, words)
    )


def add_product(
    out: Float[Tensor, "m n"], a: Float[Tensor, "m k"], b: Float[Tensor, "k n"]
) -> None:
    """Add a b to `out`, whose dtype the products have."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a, b, out_dtype=out.dtype))


def product_dtype(hidden: Float[Tensor, "tokens _"], wide: torch.dtype) -> torch.dtype:
    """What factors are rounded to: bfloat16 where they would be, and may stay, so."""
    # float16 is not wide enough for gradients; elsewhere bfloat16 has no wide result
    device = hidden.device.type
    if device != "cuda" or "dtype" not in torch.ops.aten.mm.overloads():
        return wide
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return torch.bfloat16 if torch.bfloat16 in (hidden.dtype, autocast) else wide
