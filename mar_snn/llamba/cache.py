"""LlambaCache: what a Llamba model remembers of the tokens it has read."""

from dataclasses import fields

from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

__all__ = ["CACHE_NAME", "LlambaCache"]

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

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Tokens read so far: the name and argument that `generate` uses."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: Int[Tensor, " B"]) -> None:
        """Follow beam search: sequence i continues what sequence beam_idx[i] was."""
        for states in (self.conv_states, self.ssm_states):
            states[:] = [
                None if state is None else state.index_select(0, beam_idx)
                for state in states
            ]
