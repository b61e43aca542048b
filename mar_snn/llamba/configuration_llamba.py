"""LlambaConfig: the numbers of a Llamba model, in the layout of its released files."""

from dataclasses import asdict
from typing import Any, ClassVar

from transformers import PreTrainedConfig

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
        vocab_size: rounded up to a multiple of `pad_vocab_size_multiple`.
        d_model: hidden size.
        n_layer: number of blocks.
        tie_embeddings: whether the LM head is the embedding.
        norm_epsilon: epsilon of the last norm; the blocks' norms use 1e-5 always, as
            in the released model.
        mlp_cfg: `intermediate_size`, `bias`, `act_fn`.
        ssm_cfg: `d_state`, `n_v_heads`, `n_qk_heads`, `expand`, `chunk_size`,
            `activation` (of the convolution), `bias`, `d_conv`, `conv_bias`.
        spiking: None for the dense model, or the coders that its slots hold.
        scan_backend: which kernels scan: "torch", "fla", "mamba_ssm", or "auto" for
            the first of the last three that can run. It belongs to the machine, not to
            the checkpoint: it is not saved.

    Raises:
        ValueError: where the sizes do not fit each other, or an unknown backend.
        RuntimeError: where the backend's package is not installed.
    """

    model_type = "llamba"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
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
        # transformers' names reach the fields through attribute_map
        self.d_model = kwargs.pop("hidden_size", d_model)
        self.n_layer = kwargs.pop("num_hidden_layers", n_layer)
        self.vocab_size = vocab_size + -vocab_size % pad_vocab_size_multiple
        self.tie_embeddings = tie_embeddings
        self.pad_vocab_size_multiple = pad_vocab_size_multiple
        self.lm_head_bias = lm_head_bias
        self.resid_dropout = resid_dropout
        self.norm_epsilon = norm_epsilon
        self.initializer_range = initializer_range
        self.mlp_cfg = _MLP_DEFAULTS | (mlp_cfg or {})
        self.ssm_cfg = _SSM_DEFAULTS | (ssm_cfg or {})
        self.use_cache = use_cache
        self.spiking = (
            SpikingConfig(**spiking) if isinstance(spiking, dict) else spiking
        )
        check_scan_backend(scan_backend)
        self.scan_backend = scan_backend
        super().__init__(**kwargs | {"tie_word_embeddings": tie_embeddings})
        heads, groups = self.ssm_cfg["n_v_heads"], self.ssm_cfg["n_qk_heads"]
        if self.d_inner % heads or heads % groups:
            raise ValueError(
                "n_qk_heads must divide n_v_heads, and n_v_heads the inner width "
                f"d_model * expand, got n_qk_heads={groups}, n_v_heads={heads}, "
                f"d_model * expand = {self.d_inner}; change ssm_cfg"
            )

    @property
    def d_inner(self) -> int:
        """Width of the mixer, d_model * expand."""
        return int(self.d_model * self.ssm_cfg["expand"])

    @property
    def layer_types(self) -> list[str]:
        """What transformers asks a model about its layers: none of them attends."""
        return ["linear_attention"] * self.n_layer

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `spiking` becomes a dictionary of numbers."""
        output: dict[str, Any] = super().to_dict()
        del output["scan_backend"]
        if self.spiking is not None:
            output["spiking"] = asdict(self.spiking)
        return output
