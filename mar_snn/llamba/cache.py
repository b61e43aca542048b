"""LlambaCache: what a Llamba model remembers of the tokens it has read."""

from dataclasses import fields
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

__all__ = ["CACHE_NAME", "LlambaCache", "as_llamba_cache", "overwritable"]

#: What transformers calls a model's cache: "past_key_values" up to 5.23, then "cache".
CACHE_NAME = next(
    field.name
    for field in fields(CausalLMOutputWithPast)
    if field.name in ("past_key_values", "cache")
)


class LlambaCache:
    """Constant-size memory of every layer: passed to the model as `past_key_values`.

    transformers' own linear-attention cache changes its interface between minor
    versions; this one is what `generate` needs and no more.

    Where no gradient is recorded and nothing is compiled, new states take the place of
    the old in memory, so that a step may be captured in a CUDA graph. `copy.deepcopy`
    forks a conversation.
    """

    #: generate() asks: the cache holds no fixed buffers to compile against
    is_compileable = False
    #: and a recurrent state cannot be cut back to fewer tokens
    is_croppable = False

    def __init__(self, num_layers: int) -> None:
        #: last inputs of each convolution, [B, channels, taps - 1], None at the start
        self.conv_states: list[Float[Tensor, "B channels taps"] | None]
        self.conv_states = [None] * num_layers
        #: state of each scan, [B, H, P, N] in float32, None at the start
        self.ssm_states: list[Float[Tensor, "B H P N"] | None] = [None] * num_layers
        self.seen_tokens = 0

    @property
    def is_linear(self) -> list[bool]:
        """No layer is what `generate` would call linear: it cuts the tokens read off.

        From transformers 5.24 on it leaves them in front of the new ones otherwise.
        """
        return [False] * len(self.ssm_states)

    def check(self, batch: int, layers: int, sizes: list[tuple[int, ...]]) -> None:
        """Refuse to go on with other rows, or in a model of other sizes.

        `sizes` are those of a row's two states in a layer, of convolution and of scan.

        Raises:
            ValueError: where what is remembered is of another size.
        """
        held = [
            state
            for states in (self.conv_states, self.ssm_states)
            for state in states[:1]
            if state is not None
        ]
        held_sizes = [tuple(state.shape[1:]) for state in held]
        if len(self.ssm_states) != layers or held_sizes not in ([], sizes):
            raise ValueError(
                f"the cache is of a model of {len(self.ssm_states)} layers with states "
                f"of {held_sizes or 'any size'}, and this model has {layers} with "
                f"{sizes}: pass the cache that this model returned"
            )
        if held and len(held[0]) != batch:
            raise ValueError(
                f"the cache has read {len(held[0])} rows, and {batch} are to go on "
                "from it: pass tokens for each, or repeat what was read, for beams and "
                "num_return_sequences too, by cache.reorder_cache(indices)"
            )

    def update(
        self,
        layer_idx: int,
        conv_state: Float[Tensor, "B channels taps"],
        ssm_state: Float[Tensor, "B H P N"],
    ) -> None:
        """Remember what a layer hands on, in place of what it handed on before."""
        for states, new in (
            (self.conv_states, conv_state),
            (self.ssm_states, ssm_state),
        ):
            states[layer_idx] = _written(states[layer_idx], new)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens read so far: the name and argument that `generate` uses."""
        return self.seen_tokens

    def crop(self, max_length: int) -> NoReturn:
        """Refused: what `generate` would call to take tokens back.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a Llamba cache cannot be cropped to {max_length} of its "
            f"{self.seen_tokens} tokens: a recurrent state does not say what it was "
            "before; copy.deepcopy(cache) where a conversation forks, and go on from "
            "the copy"
        )

    def reorder_cache(self, beam_idx: Int[Tensor, " B"]) -> None:
        """Follow beam search: sequence i continues what sequence beam_idx[i] was."""
        for states in (self.conv_states, self.ssm_states):
            states[:] = [
                None if state is None else state.index_select(0, beam_idx)
                for state in states
            ]


def as_llamba_cache(given: Any) -> LlambaCache:
    """`given`, which is one.

    Raises:
        ValueError: where it is anything else, such as transformers' own caches.
    """
    if isinstance(given, LlambaCache):
        return given
    raise ValueError(
        f"the cache must be a LlambaCache, got {type(given).__name__}: Llamba "
        "remembers two states a layer, and no keys and values of an attention. Leave "
        "it out, and the model makes its own and returns it. PEFT's prefix tuning is "
        "keys and values: use LoRA or prompt tuning"
    )


def overwritable(state: Tensor) -> bool:
    """Whether the state behind a token may take the place of this one in memory."""
    if torch.is_grad_enabled() or state.requires_grad:
        return False  # a backward pass may want to read it
    if torch.compiler.is_compiling():
        return False  # Inductor of PyTorch 2.11 reads it after it has overwritten it
    # inference tensors are not written outside of inference mode
    return torch.is_inference_mode_enabled() or not state.is_inference()


def _written(old: Tensor | None, new: Tensor) -> Tensor:
    """`new`, in the memory of `old` where that fits and may be overwritten."""
    if old is None or old is new or not overwritable(old):
        return new
    if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        return new
    return old.copy_(new)
