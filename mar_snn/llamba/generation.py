"""`generate` for models whose memory of the tokens read is one state a layer."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from mar_snn.llamba.cache import CACHE_NAME, LlambaCache, as_llamba_cache

__all__ = ["RecurrentGenerationMixin"]

#: What has the tokens guessed and then takes wrong ones back.
_GUESSING = (
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "speculation_type",
    "use_mtp",
)


class RecurrentGenerationMixin(GenerationMixin):
    """transformers' `generate`, without what a recurrent state cannot do."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        assistant_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids, or what transformers returns for `return_dict_in_generate`.

        Raises:
            ValueError: for speculative decoding, whose wrong guesses would have to be
                taken back, and for a `cache_implementation`, which lays out keys and
                values of an attention that is not there; for a cache that is not
                Llamba's; for prompts that end in padding.
        """
        settings = (generation_config or self.generation_config).to_dict() | kwargs
        guessing = [name for name in _GUESSING if settings.get(name)]
        if assistant_model is not None:
            guessing.append("assistant_model")
        if guessing:
            raise ValueError(
                f"{', '.join(guessing)}: tokens that are guessed and refused cannot be "
                "taken back out of Llamba's recurrent state, which holds the sum of "
                "all; leave it out, greedy search, sampling and beams do not guess"
            )
        if layout := settings.get("cache_implementation"):
            raise ValueError(
                f"cache_implementation={layout!r} lays out keys and values of an "
                "attention, and Llamba has none: its LlambaCache has a constant size "
                "and fixed addresses as it is; leave it out"
            )
        given = [
            as_llamba_cache(kwargs[name])
            for name in ("cache", "past_key_values")
            if kwargs.get(name) is not None
        ]
        if settings.get("prefill_chunk_size") and not given:
            kwargs[CACHE_NAME] = LlambaCache(self.config.n_layer)
        return super().generate(
            inputs, generation_config, *args, assistant_model=assistant_model, **kwargs
        )

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        # called behind the prompt, and behind every token that was written
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask ends in padding, so generate would continue padding "
                "and no prompt: pad on the left (tokenizer.padding_side = 'left')"
            )
        if model_kwargs.get("use_cache"):
            # the cache has read the prompt, and no token that is written is padding
            model_kwargs = model_kwargs | {"attention_mask": None}
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        return updated

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Refused: it pages keys and values.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "continuous batching (generate_batch) pages keys and values of an "
            "attention, and Llamba has none: use generate with a batch that is padded "
            "on the left"
        )
