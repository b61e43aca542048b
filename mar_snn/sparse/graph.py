"""GraphedStep: a decoding step on a GPU without Python between its kernels."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["GraphedStep"]


class GraphedStep:
    """One token through a Llamba on a CUDA device: recorded once, then replayed.

    At batch 1 a kernel of a 1B model takes a few microseconds, less than its launch.
    The graph reads and writes the states of `cache` where they are, so `cache` is that
    of the conversation at every moment; whoever replaces its tensors (`reorder_cache`,
    a prefill of another batch size) needs a new graph.

    Args:
        model: a `LlambaForCausalLM` on a CUDA device, in eval mode.
        cache: what the model returned for the tokens so far.

    Raises:
        ValueError: for a model on another device, or a cache that has read nothing.
    """

    def __init__(self, model: Any, cache: Any) -> None:
        if model.device.type != "cuda":
            raise ValueError(
                f"a CUDA graph needs a model on a CUDA device, got {model.device}: "
                "call the model itself"
            )
        if not cache.get_seq_length():
            raise ValueError("the cache has read no tokens: run the prompt first")
        self.cache = cache
        (batch, *_) = cache.ssm_states[0].shape
        self._ids = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            # what is compiled at first use is so before anything is recorded
            model(input_ids=self._ids, past_key_values=copy.deepcopy(cache))
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        seen = cache.seen_tokens
        with torch.no_grad(), torch.cuda.graph(self._graph, stream=stream):
            self._logits = model(input_ids=self._ids, past_key_values=cache).logits
        cache.seen_tokens = seen  # recording runs nothing on the device

    def __call__(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "B 1 words"]:
        """The logits behind `ids`, in memory that the next call writes again."""
        self._ids.copy_(ids)
        self._graph.replay()
        self.cache.seen_tokens += 1
        return self._logits
