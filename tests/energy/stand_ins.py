"""Classes with the dotted paths, attributes and calls of packages not installed here.

Their kernels are numpy's, so torch sees as little of them as of the real ones.
"""

import torch
from torch import Tensor, nn


def named(path: str, base: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `base` with the dotted path of another package's class."""
    module, name = path.rsplit(".", 1)
    return type(name, (base,), {"__module__": module, "__qualname__": name})


def kernel(like: Tensor, width: int | None = None) -> Tensor:
    """The result [..., width] of a kernel that torch does not know."""
    out = like.new_empty(*like.shape[:-1], width or like.shape[-1])
    out.detach().numpy()[...] = 0.5
    return out


class Kernel(nn.Module):
    """A module that is one such kernel, with `weight` [width] and `bias`."""

    def __init__(self, width: int = 0, bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if width else None
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None

    def forward(self, x: Tensor, *rest: object, **named: object) -> Tensor:
        return kernel(x)


class Attention(nn.Module):
    """fla's two kinds of gated linear attention without convolutions."""

    def __init__(self, width: int, heads: int, k: int, v: int, decays: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = heads, heads * k, heads * v
        self.head_v_dim, self.clamp_min, self.feature_map_fn = v, None, None
        self.fuse_norm_and_gate = True
        self.q_proj = nn.Linear(width, heads * k, bias=False)
        self.k_proj = nn.Linear(width, heads * k, bias=False)
        self.v_proj = nn.Linear(width, heads * v, bias=False)
        self.gk_proj = nn.Linear(width, decays)
        self.g_proj = nn.Linear(width, heads * v, bias=False)
        gate = "fla.modules.norm.fused_norm_gate.FusedRMSNormGated"
        self.g_norm_swish_gate = named(gate, Kernel)(v)
        self.o_proj = nn.Linear(heads * v, width, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None, None]:
        if attention_mask is not None:
            hidden_states = hidden_states[attention_mask.bool()].unsqueeze(0)
        x = hidden_states
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        decay = nn.functional.logsigmoid(self.gk_proj(x)) / 16
        out = kernel(q + k + v.sum() + decay.sum(), self.value_dim)
        heads = (*out.shape[:-1], self.num_heads, self.head_v_dim)
        gate = self.g_proj(x).view(heads)
        out = self.g_norm_swish_gate(out.view(heads), gate).flatten(-2)
        return self.o_proj(out), None, None


class GatedMLP(nn.Module):
    """fla's."""

    def __init__(self, width: int, inner: int, *, fuse: bool) -> None:
        super().__init__()
        self.hidden_size, self.intermediate_size = width, inner
        self.fuse_swiglu, self.hidden_act = fuse, "swish"
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        if fuse:
            self.swiglu_linear = named("fla.modules.mlp.SwiGLULinear", Projected)()

    def forward(self, x: Tensor) -> Tensor:
        gate, y = self.gate_proj(x), self.up_proj(x)
        if self.fuse_swiglu:
            return self.swiglu_linear(gate, y, self.down_proj.weight, None)
        return self.down_proj(kernel(gate))


class Projected(nn.Module):
    """Of (gate, y, weight, bias)."""

    def forward(self, gate: Tensor, y: Tensor, weight: Tensor, bias: None) -> Tensor:
        return kernel(gate, len(weight))


class Convolution(nn.Conv1d):
    """fla's ShortConvolution."""

    def __init__(self, channels: int, taps: int, *, bias: bool, silu: bool) -> None:
        super().__init__(channels, channels, taps, groups=channels, bias=bias)
        self.activation = "silu" if silu else None

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        cache: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return kernel(x), cache


class Block(nn.Module):
    """mamba_ssm's: its norms are read by a kernel where they are fused."""

    def __init__(
        self, norm: type[nn.Module], width: int, mlp: bool, fused: bool
    ) -> None:
        super().__init__()
        self.fused_add_norm = fused
        self.norm, self.mixer = norm(width), nn.Linear(width, width, bias=False)
        self.mlp = nn.Linear(width, width, bias=False) if mlp else None
        if mlp:
            self.norm2 = norm(width)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        def add_and_norm(x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
            nonlocal residual
            residual = x if residual is None else x + residual
            return kernel(x) if self.fused_add_norm else norm(residual)

        x = self.mixer(add_and_norm(hidden_states, self.norm))
        if self.mlp is not None:
            x = self.mlp(add_and_norm(x, self.norm2))
        return x, residual


class Model(nn.Module):
    """mamba_ssm's MixerModel around blocks."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module, fused: bool) -> None:
        super().__init__()
        self.fused_add_norm, self.norm_f = fused, norm
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return kernel(x) if self.fused_add_norm else self.norm_f(x + residual)
