"""MarLM: what lm-evaluation-harness asks of a model, answered by a Llamba."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

import mar_snn.llamba  # noqa: F401  AutoModelForCausalLM learns of Llamba by it
from mar_snn.devices import usable_device
from mar_snn.loading import load
from mar_snn.provenance import versions
from mar_snn.spiking import SpikingConfig

__all__ = ["MarLM"]

#: what transformers raises for files that are missing, or are something else
_LOADING_ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError)
#: Tokens of a batch that a CPU detects; more of them leave its caches and run slower.
_CPU_TOKENS = 4096


@register_model("mar")
class MarLM(HFLM):
    """A causal language model of transformers or of ours, dense or spiking.

    `lm_eval` knows it as `mar`. It is `lm_eval`'s own model for transformers, with
    these differences:

    * the dtype of a spiking model is float32 unless another is asked for, because a
      membrane rounded to 16 bits fires elsewhere; that of a dense one is its files';
    * a context is `max_length` tokens, 2048 unless said otherwise, whatever the
      tokenizer allows: a recurrent state has no limit of its own;
    * `batch_size="auto"` works without a GPU too, from the memory that is free;
    * a model that cannot be judged is one sentence.

    Args:
        pretrained: folder or hub name of a checkpoint, or a loaded model.
        dtype: of the weights; not used for a loaded model.
        device: by default a GPU where there is one; not used for a loaded model.
        options: those of `lm_eval.models.huggingface.HFLM`, such as `tokenizer`,
            `batch_size`, `max_batch_size`, `max_length` and `revision`.

    Raises:
        ValueError: for what is no causal language model, has no tokenizer, or has one
            that is another model's, and for a device that is not there.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        name = pretrained if isinstance(pretrained, str) else type(pretrained).__name__
        options = {"backend": "causal"} | options
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if isinstance(pretrained, str):
            usable_device(device)  # HFLM would take another in its place
        try:
            super().__init__(pretrained, dtype=dtype, device=device, **options)
        except (*_LOADING_ERRORS, ValueError) as error:
            raise ValueError(
                f"{name} is no causal language model with a tokenizer: {error}"
            ) from error
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has no end-of-text token")
        known, size = len(self.tokenizer), self.config.vocab_size
        if known > size:
            raise ValueError(
                f"{name} knows {size} tokens and its tokenizer has {known}: name the "
                "model's own with tokenizer=..."
            )

    def _create_model(
        self, pretrained: str, *, dtype: str | torch.dtype | None, **options: Any
    ) -> None:
        if dtype is None:
            dtype = "float32" if self.spiking is not None else "auto"
        if isinstance(getattr(self.config, "spiking", None), dict):
            # of another package, whose dense class AutoModel would take
            revision = options.get("revision")
            self._model = load(pretrained, dtype=dtype, revision=revision)
            self._model.to(self.device)
        else:
            super()._create_model(pretrained, dtype=dtype, **options)
        # the one that spikify() writes to; HFLM has read another of the same files
        self._config = self._model.config

    @property
    def spiking(self) -> Any:
        """The SpikingConfig of the model; None for a dense one."""
        spiking = getattr(self.config, "spiking", None)
        return SpikingConfig(**spiking) if isinstance(spiking, dict) else spiking

    @property
    def max_length(self) -> int:
        """Tokens of a context."""
        return self._max_length or self._DEFAULT_MAX_LENGTH

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], **options: Any
    ) -> list[tuple[float, bool]]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise ValueError(
                f"an answer has {longest} tokens and a context {self.max_length}: give "
                "a larger max_length"
            )
        return super()._loglikelihood_tokens(requests, **options)

    def _detect_batch_size(
        self, requests: Sequence[Any] | None = None, pos: int = 0
    ) -> int:
        if self.device.type != "cpu":
            return super()._detect_batch_size(requests, pos)
        # the trials that HFLM makes would end in the system killing the process
        length = self.max_length
        if requests:
            _, context, continuation = requests[pos]
            length = min(length, len(context) + len(continuation) - 1)
        # float32: logits, their log-softmax and what made them; the widest block
        floats = 3 * self.config.vocab_size + 16 * self.config.hidden_size
        free = psutil.virtual_memory().available // 2
        tokens = min(_CPU_TOKENS, free // (4 * floats))
        return max(1, min(self.max_batch_size, tokens // length))

    def fingerprint(self) -> str:
        """Sixteen digits that change with anything the answers depend on.

        Weights, configuration, tokenizer, lengths, dtypes and versions; a model that
        was trained on and saved in its old place has another fingerprint.
        """
        digest = hashlib.sha256()
        for part in (
            versions("lm-eval"),
            self.config.to_dict(),
            self.tokenizer.get_vocab(),
            [repr(self.tokenizer), self.add_bos_token, self.prefix_token_id],
            [self.max_length, str(self.softmax_dtype), str(self.mixed_precision_dtype)],
        ):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(data.numpy().data)
        return digest.hexdigest()[:16]
