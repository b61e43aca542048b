"""Stands in for mamba_ssm where it cannot be installed: it needs CUDA to compile.

The classes have the dotted paths, attributes, state keys and control flow of mamba_ssm
2.3 (modules/mamba2.py, modules/mamba_simple.py, modules/mlp.py, modules/block.py,
models/mixer_seq_simple.py) as far as they decide where a coder can stand: which calls
go through a projection and which multiply with its weight, and that decoding is another
method than prefill. The arithmetic is a plain recurrence and makes no claim to be fast.
"""

import json
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mamba2(nn.Module):
    """mamba_ssm.modules.mamba2.Mamba2 with one group and the gate in the norm."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 8,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_inner, self.headdim = expand * d_model, headdim
        self.d_state, self.d_conv = d_state, d_conv
        self.nheads = self.d_inner // headdim
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        conv_dim, kind = self.d_inner + 2 * d_state, {"dtype": dtype}
        self.splits = [self.d_inner, conv_dim, self.nheads]
        self.in_proj = nn.Linear(d_model, sum(self.splits), bias=False, **kind)
        self.conv1d = nn.Conv1d(
            conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1, **kind
        )
        self.dt_bias = nn.Parameter(torch.zeros(self.nheads, **kind))
        self.A_log = nn.Parameter(torch.zeros(self.nheads, **kind))
        self.D = nn.Parameter(torch.ones(self.nheads, **kind))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5, **kind)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False, **kind)

    def forward(self, u: Tensor, inference_params: Any = None) -> Tensor:
        """As mamba_ssm's: one token by `step` where tokens went before."""
        states = None
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, len(u))
            if inference_params.seqlen_offset > 0:
                return self.step(u, *states)[0]
        zxbcdt = self.in_proj(u)
        if self.use_mem_eff_path and inference_params is None:
            return F.linear(self._mix(zxbcdt, None), self.out_proj.weight)
        return self.out_proj(self._mix(zxbcdt, states))

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token, and the states that it leaves."""
        z, x, dt = self.in_proj(hidden_states.squeeze(1)).split(self.splits, -1)
        conv_state.copy_(conv_state.roll(-1, -1))
        conv_state[..., -1] = x
        x = (conv_state * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias
        y = self._recur(F.silu(x)[:, None], dt[:, None], ssm_state)
        y = self.out_proj(self.norm(y[:, 0] * F.silu(z)))
        return y[:, None], conv_state, ssm_state

    def _mix(self, zxbcdt: Tensor, states: tuple[Tensor, Tensor] | None) -> Tensor:
        z, x, dt = zxbcdt.split(self.splits, -1)
        ssm_state = self._zeros(len(x))[1]
        if states is not None:
            ends = F.pad(x.mT, (self.d_conv, 0))
            states[0].copy_(ends[..., -self.d_conv :])
            ssm_state = states[1]
        x = self.conv1d(x.mT)[..., : x.shape[1]].mT
        return self.norm(self._recur(F.silu(x), dt, ssm_state) * F.silu(z))

    def _recur(self, x: Tensor, dt: Tensor, ssm_state: Tensor) -> Tensor:
        x, b, c = x.split([self.d_inner, self.d_state, self.d_state], -1)
        x, dt = x.unflatten(-1, (self.nheads, -1)), F.softplus(dt + self.dt_bias)
        decay, state, outputs = torch.exp(-dt * self.A_log.exp()), ssm_state, []
        for t in range(x.shape[1]):
            new = torch.einsum("bh,bn,bhp->bhpn", dt[:, t], b[:, t], x[:, t])
            state = state * decay[:, t, :, None, None] + new
            read = torch.einsum("bhpn,bn->bhp", state, c[:, t])
            outputs.append(read + self.D[:, None] * x[:, t])
        if not torch.is_grad_enabled():
            ssm_state.copy_(state)
        return torch.stack(outputs, 1).flatten(-2)

    def _zeros(self, batch: int) -> tuple[Tensor, Tensor]:
        weight = self.in_proj.weight
        kind = {"device": weight.device, "dtype": weight.dtype}
        return (
            torch.zeros(batch, self.splits[1], self.d_conv, **kind),
            torch.zeros(batch, self.nheads, self.headdim, self.d_state, **kind),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch: int
    ) -> tuple[Tensor, Tensor]:
        memory = inference_params.key_value_memory_dict
        assert self.layer_idx is not None  # noqa: S101  as there
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self._zeros(batch)
        return memory[self.layer_idx]


class Mamba(Mamba2):
    """Where mamba_ssm.modules.mamba_simple.Mamba calls projections, and where not."""

    def __init__(self, d_model: int, use_fast_path: bool = True, **rest: Any) -> None:
        super().__init__(d_model, **rest)
        self.use_fast_path = use_fast_path

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """A whole sequence by the weight of in_proj, one token by the module."""
        states = None
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, len(hidden_states))
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
        xz = (self.in_proj.weight @ hidden_states.mT).mT
        if self.use_fast_path and inference_params is None:
            return F.linear(self._mix(xz, None), self.out_proj.weight)
        return self.out_proj(self._mix(xz, states))


class GatedMLP(nn.Module):
    """mamba_ssm.modules.mlp.GatedMLP."""

    def __init__(
        self, width: int, hidden: int, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False, dtype=dtype)
        self.fc2 = nn.Linear(hidden, width, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """fc2(y * silu(gate))."""
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * F.silu(gate))


class Block(nn.Module):
    """mamba_ssm.modules.block.Block, its norms not fused."""

    def __init__(self, mixer: nn.Module, mlp: nn.Module | None, width: int) -> None:
        super().__init__()
        self.fused_add_norm = False
        self.norm, self.mixer, self.mlp = nn.RMSNorm(width), mixer, mlp
        if mlp is not None:
            self.norm2 = nn.RMSNorm(width)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """(what this block adds, the stream before it)."""
        x = hidden_states
        residual = x if residual is None else x + residual
        x = self.norm(residual.to(self.norm.weight.dtype))
        x = self.mixer(x, inference_params=inference_params)
        if self.mlp is not None:
            residual = x + residual
            x = self.mlp(self.norm2(residual.to(self.norm2.weight.dtype)))
        return x, residual


@dataclass
class MambaConfig:
    """The fields of mamba_ssm.models.config_mamba.MambaConfig that are used here."""

    d_model: int = 16
    d_intermediate: int = 0
    n_layer: int = 2
    vocab_size: int = 48
    ssm_cfg: dict[str, Any] = field(default_factory=dict)


class MixerModel(nn.Module):
    """mamba_ssm.models.mixer_seq_simple.MixerModel."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype | None) -> None:
        super().__init__()
        settings = dict(config.ssm_cfg)
        mixer = {"Mamba1": Mamba, "Mamba2": Mamba2}[settings.pop("layer", "Mamba1")]
        width, hidden = config.d_model, config.d_intermediate
        self.fused_add_norm = False
        self.embedding = nn.Embedding(config.vocab_size, width, dtype=dtype)
        self.layers = nn.ModuleList(
            Block(
                mixer(width, layer_idx=i, dtype=dtype, **settings),
                GatedMLP(width, hidden, dtype) if hidden else None,
                width,
            ).to(dtype)
            for i in range(config.n_layer)
        )
        self.norm_f = nn.RMSNorm(width, dtype=dtype)

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        """Hidden states behind the last norm."""
        x, residual = self.embedding(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params)
        return self.norm_f(x + residual)


class MambaLMHeadModel(nn.Module):
    """mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel, its head tied."""

    def __init__(
        self, config: MambaConfig, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = MixerModel(config, dtype)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight
        self.to(device)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: None = None,  # noqa: ARG002
        inference_params: Any = None,
    ) -> Any:
        """A tuple with the name `logits`."""
        hidden = self.backbone(input_ids, inference_params=inference_params)
        return namedtuple("CausalLMOutput", ["logits"])(logits=self.lm_head(hidden))

    def save_pretrained(self, save_directory: str) -> None:
        """A pickle of the tensors and the fields of the config."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(self.config.__dict__))


@contextmanager
def installed() -> Iterator[None]:
    """Inside the block, imports of mamba_ssm find these classes."""
    homes = {
        "models.config_mamba": (MambaConfig,),
        "models.mixer_seq_simple": (MambaLMHeadModel, MixerModel),
    }
    made = {}
    for path, classes in homes.items():
        module = made[f"mamba_ssm.{path}"] = ModuleType(f"mamba_ssm.{path}")
        for member in classes:
            setattr(module, member.__name__, member)
    for package in ("mamba_ssm", "mamba_ssm.models"):
        made[package] = ModuleType(package)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name)


for _path, _classes in {
    "modules.mamba2": (Mamba2,),
    "modules.mamba_simple": (Mamba,),
    "modules.mlp": (GatedMLP,),
    "modules.block": (Block,),
    "models.config_mamba": (MambaConfig,),
    "models.mixer_seq_simple": (MambaLMHeadModel, MixerModel),
}.items():
    for _class in _classes:
        _class.__module__ = f"mamba_ssm.{_path}"
