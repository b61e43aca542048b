"""LlambaConfig: the numbers of a Llamba model, in the layout of its released files."""

import warnings
from dataclasses import asdict
from difflib import get_close_matches
from inspect import signature
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from mar_snn.llamba.scan_backends import check_scan_backend
from mar_snn.spiking import SpikingConfig

__all__ = ["LlambaConfig"]

_MLP_DEFAULTS: dict[str, Any] = {
    "intermediate_size": 8192,
    "bias": False,
    "act_fn": "silu",
}
_SSM_DEFAULTS: dict[str, Any] = {
    "d_state": 64,
    "n_v_heads": 32,
    "n_qk_heads": 32,
    "expand": 1,
    "chunk_size": 128,
    "activation": "identity",
    "bias": False,
    "d_conv": 4,
    "conv_bias": True,
}


class LlambaConfig(PreTrainedConfig):
    """The shape of a Llamba model; the defaults are those of Llamba-1B.

    The field names are those of the released `config.json` files (arXiv 2502.14458),
    so that they load unchanged; `hidden_size` and `num_hidden_layers` are accepted too.

    Args:
        vocab_size: rounded up to a multiple of `pad_vocab_size_multiple`; a model whose
            embedding was resized keeps the number it has.
        d_model: hidden size.
        n_layer: number of blocks.
        tie_embeddings: whether the LM head is the embedding; `tie_word_embeddings` is
            the same.
        resid_dropout: read from released files, and has no effect: nothing is dropped.
        norm_epsilon: epsilon of the last norm; the blocks' norms use 1e-5 always, as
            in the released model.
        mlp_cfg: `intermediate_size`, `bias`, `act_fn`.
        ssm_cfg: `d_state`, `n_v_heads`, `n_qk_heads`, `expand`, `chunk_size` (read from
            released files, and has no effect: the scan's results do not depend on it),
            `activation` (of the convolution), `bias`, `d_conv`, `conv_bias`.
        spiking: None for the dense model, or the coders that its slots hold.
        scan_backend: which kernels scan: "torch", "fla", "mamba_ssm", or "auto" for
            the first of the last three that can run. It belongs to the machine, not to
            the checkpoint: it is not saved.

    Raises:
        ValueError: where the sizes do not fit each other, for a name that is nearly one
            of these or stands in the wrong place, for two names of one setting that
            differ, or an unknown activation or backend. Other names are kept, as in
            every configuration of transformers.
        RuntimeError: where the backend's package is not installed.

    Warns:
        UserWarning: for a `resid_dropout` that is not zero.
    """

    model_type = "llamba"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(
        self,
        vocab_size: int = 128256,
        d_model: int = 2048,
        n_layer: int = 16,
        tie_embeddings: bool = True,
        pad_vocab_size_multiple: int = 8,
        lm_head_bias: bool = False,
        resid_dropout: float = 0.0,
        norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        mlp_cfg: dict[str, Any] | None = None,
        ssm_cfg: dict[str, Any] | None = None,
        use_cache: bool = True,
        spiking: SpikingConfig | dict[str, Any] | None = None,
        scan_backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        self.d_model = self._given("d_model", d_model, kwargs)
        self.n_layer = self._given("n_layer", n_layer, kwargs)
        self.tie_embeddings = self._given("tie_embeddings", tie_embeddings, kwargs)
        _refuse_misplaced(kwargs)
        if pad_vocab_size_multiple < 1:
            raise ValueError(
                "pad_vocab_size_multiple must be 1, for no padding, or more, got "
                f"{pad_vocab_size_multiple}"
            )
        self.vocab_size = vocab_size + -vocab_size % pad_vocab_size_multiple
        self.pad_vocab_size_multiple = pad_vocab_size_multiple
        self.lm_head_bias = lm_head_bias
        self.resid_dropout = resid_dropout
        self.norm_epsilon = norm_epsilon
        self.initializer_range = initializer_range
        self.mlp_cfg = _MLP_DEFAULTS | (mlp_cfg or {})
        self.ssm_cfg = _SSM_DEFAULTS | (ssm_cfg or {})
        self.use_cache = use_cache
        self.spiking: SpikingConfig | None
        self.spiking = spiking  # type: ignore[assignment]  # settled below
        self.scan_backend = scan_backend
        self.settle()
        super().__init__(**kwargs)

    def _given(self, name: str, value: Any, kwargs: dict[str, Any]) -> Any:
        """The value of a field, or what `kwargs` has for it by transformers' name."""
        (alias,) = (alias for alias, own in self.attribute_map.items() if own == name)
        other = kwargs.pop(alias, value)
        default = signature(LlambaConfig).parameters[name].default
        if value not in (other, default):
            raise ValueError(
                f"{name} and {alias} are two names of one setting, got {value} and "
                f"{other}: leave one out"
            )
        return other

    def settle(self) -> None:
        """Make the nested settings whole, and refuse what no model can be made of.

        A model does this again: settings can be replaced, one by one or by
        `from_pretrained`, after the configuration was made.
        """
        for name, own in (("mlp_cfg", _MLP_DEFAULTS), ("ssm_cfg", _SSM_DEFAULTS)):
            given = getattr(self, name)
            if unknown := given.keys() - own.keys():
                raise ValueError(
                    f"{name} has no {', '.join(sorted(unknown))}: it takes "
                    f"{', '.join(own)}"
                )
            if missing := own.keys() - given.keys():
                raise ValueError(
                    f"{name} lacks {', '.join(sorted(missing))}: what takes its place "
                    "must be whole; change single entries of the config's own"
                )
        for name, chosen, more in (
            ("mlp_cfg['act_fn']", self.mlp_cfg["act_fn"], ()),
            ("ssm_cfg['activation']", self.ssm_cfg["activation"], ("identity",)),
        ):
            if chosen not in (known := (*more, *ACT2FN)):
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {chosen!r}"
                )
        heads, groups = self.ssm_cfg["n_v_heads"], self.ssm_cfg["n_qk_heads"]
        if self.d_inner % heads or heads % groups:
            raise ValueError(
                "n_qk_heads must divide n_v_heads, and n_v_heads the inner width "
                f"d_model * expand, got n_qk_heads={groups}, n_v_heads={heads}, "
                f"d_model * expand = {self.d_inner}; change ssm_cfg"
            )
        if self.resid_dropout:
            warnings.warn(
                f"resid_dropout={self.resid_dropout} has no effect: this Llamba drops "
                "nothing, not even in training",
                stacklevel=3,
            )
        if isinstance(self.spiking, dict):
            self.spiking = SpikingConfig(**self.spiking)
        check_scan_backend(self.scan_backend)

    @property
    def d_inner(self) -> int:
        """Width of the mixer, d_model * expand."""
        return int(self.d_model * self.ssm_cfg["expand"])

    @property
    def state_sizes(self) -> list[tuple[int, ...]]:
        """Sizes of what a layer remembers of a row: of its convolution and its scan."""
        ssm = self.ssm_cfg
        channels = self.d_inner + 2 * ssm["n_qk_heads"] * ssm["d_state"]
        heads = ssm["n_v_heads"]
        return [
            (channels, ssm["d_conv"] - 1),
            (heads, self.d_inner // heads, ssm["d_state"]),
        ]

    @property
    def layer_types(self) -> list[str]:
        """What transformers asks a model about its layers: none of them attends."""
        return ["linear_attention"] * self.n_layer

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `spiking` becomes a dictionary of numbers."""
        output: dict[str, Any] = super().to_dict()
        del output["scan_backend"]
        # what transformers' tools look for
        output["tie_word_embeddings"] = self.tie_embeddings
        if self.vocab_size % self.pad_vocab_size_multiple:
            # resized: whoever reads this must not round it up again
            output["pad_vocab_size_multiple"] = 1
        if isinstance(self.spiking, SpikingConfig):
            output["spiking"] = asdict(self.spiking)
        return output


def _refuse_misplaced(kwargs: dict[str, Any]) -> None:
    """Raise for names that transformers would keep and that are nearly Llamba's."""
    own = [*signature(LlambaConfig).parameters, *LlambaConfig.attribute_map]
    own.remove("kwargs")
    nested = {"mlp_cfg": _MLP_DEFAULTS, "ssm_cfg": _SSM_DEFAULTS}
    for name in kwargs:
        for place, settings in nested.items():
            if name in settings:
                raise ValueError(
                    f"{name} stands in {place}: pass {place}={{{name!r}: ...}}"
                )
        if name not in own and (near := get_close_matches(name, own, 1, 0.8)):
            raise ValueError(
                f"LlambaConfig has no {name}, and has {near[0]}: rename it"
            )
