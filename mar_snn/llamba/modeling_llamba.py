"""Llamba, the Mamba-2 variant of Llama (arXiv 2502.14458), with slots for neurons.

The parameter names are those of the released checkpoints. A block is

    h = h + mixer(norm(h));    h = h + mlp(norm(h))

and each projection that MAR (arXiv 2601.21503) feeds with spikes has a slot before it:
`mixer.in_neuron`, `mixer.out_neuron`, `mlp.in_neuron` (gate and up share it) and
`mlp.out_neuron`. A slot is nn.Identity in the dense model, an ATMNCoder in the spiking.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple

from mar_snn.llamba.cache import CACHE_NAME, LlambaCache, as_llamba_cache
from mar_snn.llamba.configuration_llamba import LlambaConfig
from mar_snn.llamba.generation import RecurrentGenerationMixin
from mar_snn.llamba.model_card import CardedPreTrainedModel
from mar_snn.llamba.rows import (
    Padding,
    convolve_documents,
    convolve_token,
    find_padding,
    last_inputs,
    number_documents,
)
from mar_snn.llamba.scan import LlambaScan
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.sparse.decoding import DecodingPlan, optimize_for_decoding
from mar_snn.spiking import fill_slots

__all__ = ["LlambaForCausalLM", "LlambaModel", "LlambaPreTrainedModel"]

#: The blocks' norms use this whatever the config says, as in the released model.
_BLOCK_NORM_EPSILON = 1e-5

#: What tokenizers and `generate` may add to every model's arguments.
_MEANINGLESS = ("cache_position", "token_type_ids")

#: Arguments of the loss that come through the model.
_OF_THE_LOSS = ("ignore_index", "num_items_in_batch", "shift_labels")


class LlambaRMSNorm(nn.Module):
    """weight * x / rms(x), with float32 statistics."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """The normalised features in x's dtype."""
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class CausalConv1d(nn.Conv1d):
    """A depthwise convolution over tokens that sees the past only."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__(channels, channels, taps, groups=channels, bias=bias)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "B L channels"],
        state: Float[Tensor, "B channels before"] | None = None,
        seq_idx: Int[Tensor, "B L"] | None = None,
        padding: Padding | None = None,
    ) -> tuple[Float[Tensor, "B L channels"], Float[Tensor, "B channels before"]]:
        """(output, last taps - 1 inputs); `state` is that of the tokens before.

        No document sees another where `seq_idx` numbers them from left to right; the
        first goes on from the state, and the last leaves its inputs alone. No token
        sees padding, and padding leaves nothing.
        """
        if state is not None and x.shape[1] == 1:
            return convolve_token(x, state, self.weight[:, 0], self.bias, padding)
        before = self.kernel_size[0] - 1
        if padding is not None:
            x = padding.behind(x)
        x = x.transpose(1, 2)
        if state is None:
            x = F.pad(x, (before, 0))
        else:
            x = torch.cat([state.to(x.dtype), x], dim=-1)
        # a copy, which does not keep the whole input alive, and as a step wants it
        last = last_inputs(x.mT, before, padding).contiguous().mT
        if seq_idx is None:
            y = super().forward(x)
        else:
            last_document = seq_idx[:, -1:]
            if padding is not None:
                seq_idx = padding.behind(seq_idx)
            seq_idx = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], dim=1)
            foreign = last_inputs(seq_idx, before, padding) != last_document
            last = last.masked_fill(foreign[:, None], 0)
            y = convolve_documents(x, seq_idx, self.weight[:, 0], self.bias)
        y = y.transpose(1, 2)
        return y if padding is None else padding.between(y), last


class LlambaMixer(nn.Module):
    """Discrete Mamba-2: out_proj(scan(conv(in_proj(u))) * silu(z + z_bias))."""

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__()
        ssm = config.ssm_cfg
        self.num_heads, self.num_groups = ssm["n_v_heads"], ssm["n_qk_heads"]
        self.state_size = ssm["d_state"]
        inner, shared = config.d_inner, self.num_groups * self.state_size
        # in_proj's rows are [x | B | C], z, A_log
        self.split_sizes = [inner + 2 * shared, inner, self.num_heads]
        self.conv_split_sizes = [inner, shared, shared]
        self.in_neuron: nn.Module = nn.Identity()
        self.in_proj = nn.Linear(
            config.d_model, sum(self.split_sizes), bias=ssm["bias"]
        )
        self.conv1d = CausalConv1d(
            self.split_sizes[0], ssm["d_conv"], bias=ssm["conv_bias"]
        )
        identity = ssm["activation"] == "identity"
        self.activation = nn.Identity() if identity else ACT2FN[ssm["activation"]]
        self.scan = LlambaScan(config.scan_backend)
        self.D = nn.Parameter(torch.ones(self.num_heads))
        # the released model has this bias where in_proj has none
        self.z_bias = None if ssm["bias"] else nn.Parameter(torch.zeros(inner))
        self.out_neuron: nn.Module = nn.Identity()
        self.out_proj = nn.Linear(inner, config.d_model, bias=ssm["bias"])

    def forward(
        self,
        u: Float[Tensor, "B L D"],
        cache: LlambaCache | None = None,
        layer_idx: int = 0,
        padding: Padding | None = None,
        seq_idx: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The mixed tokens; `seq_idx` numbers the documents of a row, left to right."""
        conv_state = None if cache is None else cache.conv_states[layer_idx]
        ssm_state = None if cache is None else cache.ssm_states[layer_idx]
        xbc, z, a_log = self.in_proj(self.in_neuron(u)).split(self.split_sizes, dim=-1)
        xbc, conv_state = self.conv1d(xbc, conv_state, seq_idx, padding)
        xbc = self.activation(xbc)
        if padding is not None:
            # nothing enters the state, and its decay is sigmoid(inf) = 1
            xbc = xbc.masked_fill(~padding.is_token[..., None], 0)
            a_log = a_log.masked_fill(~padding.is_token[..., None], -torch.inf)
        x, b, c = xbc.split(self.conv_split_sizes, dim=-1)
        x = x.unflatten(-1, (self.num_heads, -1))
        b, c = (t.unflatten(-1, (self.num_groups, -1)) for t in (b, c))
        y, ssm_state = self.scan(x, b, c, a_log, self.D, ssm_state, seq_idx)
        if cache is not None:
            cache.update(layer_idx, conv_state, ssm_state)
        z = z if self.z_bias is None else z + self.z_bias
        return self.out_proj(self.out_neuron(y.flatten(-2) * F.silu(z)))


class LlambaMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__()
        mlp = config.mlp_cfg
        width, inner, bias = config.d_model, mlp["intermediate_size"], mlp["bias"]
        self.in_neuron: nn.Module = nn.Identity()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.act_fn = ACT2FN[mlp["act_fn"]]
        self.out_neuron: nn.Module = nn.Identity()
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The feed-forward's contribution to the residual stream."""
        x = self.in_neuron(x)
        x = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(self.out_neuron(x))


class LlambaBlock(GradientCheckpointingLayer):
    """Mixer and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: LlambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.input_layernorm = LlambaRMSNorm(config.d_model, _BLOCK_NORM_EPSILON)
        self.mixer = LlambaMixer(config)
        self.post_attention_layernorm = LlambaRMSNorm(
            config.d_model, _BLOCK_NORM_EPSILON
        )
        self.mlp = LlambaMLP(config)

    def forward(
        self,
        h: Float[Tensor, "B L D"],
        cache: LlambaCache | None = None,
        padding: Padding | None = None,
        seq_idx: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The residual stream behind this block."""
        u = self.input_layernorm(h)
        h = h + self.mixer(u, cache, self.layer_idx, padding, seq_idx)
        return h + self.mlp(self.post_attention_layernorm(h))


class LlambaPreTrainedModel(CardedPreTrainedModel):
    """What transformers must know of every Llamba class."""

    config_class = LlambaConfig
    base_model_prefix = "backbone"
    _input_embed_layer = "embedding"
    supports_gradient_checkpointing = True
    _no_split_modules = ("LlambaBlock",)
    _is_stateful = True
    # thresholds are learnt in float32 whatever the dtype of the model
    _keep_in_fp32_modules_strict = ("in_neuron", "out_neuron")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, CausalConv1d):
            bound = module.kernel_size[0] ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, LlambaRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ATMNNode):
            init.zeros_(module.a)
        elif isinstance(module, LlambaMixer):
            init.ones_(module.D)
            if module.z_bias is not None:
                init.zeros_(module.z_bias)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # transformers' cache cannot hold these states: forward makes a LlambaCache
        return False


class LlambaModel(LlambaPreTrainedModel):
    """Embedding, blocks and last norm."""

    def __init__(self, config: LlambaConfig) -> None:
        config.settle()
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            LlambaBlock(config, layer_idx) for layer_idx in range(config.n_layer)
        )
        self.final_layernorm = LlambaRMSNorm(config.d_model, config.norm_epsilon)
        if config.spiking is not None:
            fill_slots(self, config.spiking)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states behind the last norm, and the cache where one is wanted.

        Args:
            input_ids: token ids; or pass `inputs_embeds`.
            attention_mask: 1 on tokens, 0 on padding, wherever it stands, over these
                tokens or over all read so far: each row's tokens give what they give
                without the padding, and the cache is that of the tokens.
            past_key_values: the LlambaCache of the tokens before; `cache` is the same.
            inputs_embeds: embeddings instead of ids.
            use_cache: whether to return a cache; by default the config's answer when
                not training.
            output_hidden_states: whether to return the input of every block and, last,
                the output of the last norm (transformers' convention).
            seq_idx: the document of each token, for rows of several: convolution and
                state start afresh where it changes, so that a row gives what its
                documents give one by one. The cache is that of the last document.
            cache: what transformers calls `past_key_values` from 5.24 on.
            kwargs: `return_dict=False` for a tuple; `token_type_ids` and
                `cache_position`, which tokenizers and `generate` may add, mean nothing.

        Raises:
            ValueError: with both or neither of ids and embeddings, with a mask or
                `seq_idx` of another shape than the ids, with `seq_idx` beside a cache
                that holds tokens already, with a cache that is not of this model and
                these rows or that gradient checkpointing would write twice, or where
                attentions are asked for.
            TypeError: for arguments that nothing would read.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, not both or none")
        if seq_idx is not None:  # which says what collators say by positions, too
            kwargs.pop("position_ids", None)
        self._refuse_unread(kwargs)
        h = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = self._cache(past_key_values, cache, len(h), new=use_cache)
        padding = find_padding(attention_mask, h.shape[:2], cache)
        if seq_idx is not None:
            seq_idx = number_documents(seq_idx, h.shape[:2], cache, padding)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_hidden_states not in (None, False, True):
            raise ValueError(
                "output_hidden_states must be True or False, got "
                f"{output_hidden_states}: take those that are wanted from all"
            )
        hidden_states = []
        for layer in self.layers:
            hidden_states.append(h)
            h = layer(h, cache, padding, seq_idx)
        h = self.final_layernorm(h)
        hidden_states.append(h)
        if cache is not None:
            cache.seen_tokens += h.shape[1]
        return BaseModelOutputWithPast(
            last_hidden_state=h,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            **{CACHE_NAME: cache},
        )

    def _cache(
        self, given: Any, given_too: Any, batch: int, *, new: bool
    ) -> LlambaCache | None:
        """The cache that was given under one of its two names, or a new one."""
        if not (given is None or given_too is None or given is given_too):
            raise ValueError(
                "past_key_values and cache are two names of one thing, and two caches "
                "were given: pass one"
            )
        given = given_too if given is None else given
        if given is None and not new:
            return None
        checkpointed = any(layer.gradient_checkpointing for layer in self.layers)
        if checkpointed and self.training and torch.is_grad_enabled():
            raise ValueError(
                "gradient checkpointing reads the tokens again in the backward pass, "
                "and would write a cache twice: pass use_cache=False and no cache"
            )
        if given is None:
            return LlambaCache(self.config.n_layer)
        cache = as_llamba_cache(given)
        cache.check(batch, self.config.n_layer, self.config.state_sizes)
        return cache

    def _refuse_unread(self, kwargs: dict[str, Any]) -> None:
        """Raise for what nothing here would read."""
        if kwargs.pop("output_attentions", None) or self.config.output_attentions:
            raise ValueError(
                "output_attentions=True: Llamba has no attention; leave it out, "
                "output_hidden_states=True returns what the blocks read"
            )
        unread = [
            name
            for name, value in kwargs.items()
            if value is not None and name not in _MEANINGLESS
        ]
        if unread:
            raise TypeError(
                f"Llamba takes no {', '.join(unread)}: look for a slip in the name, or "
                "leave it out. There are no positions, and the documents of a row are "
                "numbered by seq_idx"
            )


class LlambaForCausalLM(LlambaPreTrainedModel, RecurrentGenerationMixin):
    """Llamba with a language-model head; spiking where config.spiking is set."""

    def __init__(self, config: LlambaConfig) -> None:
        super().__init__(config)
        self.backbone = LlambaModel(config)
        self.lm_head = nn.Linear(
            config.d_model, config.vocab_size, bias=config.lm_head_bias
        )
        self.post_init()

    _tied_weights_keys = {  # noqa: RUF012  transformers reads it from the class
        "lm_head.weight": "backbone.embedding.weight"
    }

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B L D"] | None = None,
        labels: Int[Tensor, "B L"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where `labels` (-100 = ignored, shifted here) are given.

        `logits_to_keep` is how many of the last tokens get logits (0: all), or their
        indices; `num_items_in_batch` (the loss is a sum over it), `ignore_index` and
        `shift_labels` are those of transformers' loss; the other arguments are those
        of `LlambaModel`.

        Raises:
            ValueError: with labels for other tokens than those that get logits, and as
                `LlambaModel`.
        """
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(
                "logits_to_keep must be 0, for all, or how many of the last tokens get "
                f"logits, got {logits_to_keep}"
            )
        of_loss = {name: kwargs.pop(name) for name in _OF_THE_LOSS if name in kwargs}
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            seq_idx=seq_idx,
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        kept = (
            slice(-logits_to_keep or None, None)
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None and labels.shape != logits.shape[:2]:
            raise ValueError(
                "labels must be those of the tokens that get logits, "
                f"{tuple(logits.shape[:2])}, got {tuple(labels.shape)}: leave "
                "logits_to_keep out, the loss is that of all tokens"
            )
        if labels is not None or of_loss.get("shift_labels") is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                **of_loss,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def optimize_for_decoding(self, **options: Any) -> DecodingPlan:
        """Read only the weights of neurons that fired, in steps of few tokens.

        In place; `mar_snn.sparse.optimize_for_decoding` has the options.
        """
        return optimize_for_decoding(self, **options)
