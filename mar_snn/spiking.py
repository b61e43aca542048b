"""Puts coders into the slots of a model, and fits their thresholds to real data.

A *site* is a place in every block where MAR (arXiv 2601.21503) turns activations into
spikes; a *slot* is the attribute of the block's module that holds the coder there.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from operator import index
from typing import Any

import torch
from jaxtyping import Float
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from mar_snn.hosts.auto import mark_as_spiking, teach_transformers
from mar_snn.hosts.check import check_coders
from mar_snn.hosts.slots import fill, insert_coders, owners, skipped
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder
from mar_snn.neurons.numbers import above_zero, whole
from mar_snn.neurons.reference import membrane_dtype

__all__ = [
    "SITES",
    "SpikingConfig",
    "calibrate",
    "coders",
    "evaluating",
    "fill_slots",
    "projections",
    "spikify",
]

#: site -> (module of the block, slot, projection that the slot feeds)
SITES = {
    "mixer.in": ("mixer", "in_neuron", "in_proj"),
    "mixer.out": ("mixer", "out_neuron", "out_proj"),
    "mlp.in": ("mlp", "in_neuron", "gate_proj"),
    "mlp.out": ("mlp", "out_neuron", "down_proj"),
}

#: What a slot may hold.
Coder = ATMNCoder | LIFCoder


@dataclass(frozen=True, kw_only=True)
class SpikingConfig:
    """Which slots hold a coder, and what the coders are: numbers and names only.

    Args:
        neuron: "atmn", the ternary neuron of MAR, or "lif", the binary baseline, which
            has `tau` >= 1, `readout="sum"`, `fire_ratio=1.0` and
            `gradient="surrogate"` only.
        time_steps: micro-steps T inside one token.
        tau: membrane time constant; the residual is divided by it at each step.
        readout: "geometric" or "sum": how the T spike planes become one value.
        fire_ratio: fire where |h| reaches this share of the threshold.
        gradient: "straight_through" or "surrogate".
        surrogate: name of a SpikingJelly surrogate, for `gradient="surrogate"`.
        detach_reset: whether the reset is left out of that gradient.
        sites: one or more of "mixer.in", "mixer.out", "mlp.in", "mlp.out"; all four
            stand for those that a model has.
        layers: indices of the blocks; None for all.

    Raises:
        ValueError: for a neuron, site or surrogate that does not exist, or what the
            neuron cannot do; the coder checks the numbers.
    """

    neuron: str = "atmn"
    time_steps: int = 4
    tau: float | int = 0.5
    readout: str = "geometric"
    fire_ratio: float | int = 2 / 3
    gradient: str = "straight_through"
    surrogate: str = "ATan"
    detach_reset: bool = False
    sites: Sequence[str] = tuple(SITES)
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        sites = (self.sites,) if isinstance(self.sites, str) else self.sites or ()
        try:
            layers = None if self.layers is None else tuple(map(index, self.layers))
        except TypeError:
            raise ValueError(
                f"layers must be None or indices of blocks, got {self.layers!r}"
            ) from None
        # JSON has lists and plain numbers only
        plain = {
            "time_steps": whole("time_steps", self.time_steps),
            "tau": above_zero("tau", self.tau),
            "fire_ratio": above_zero("fire_ratio", self.fire_ratio),
            "sites": tuple(sites),
            "layers": layers,
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        unknown = [str(site) for site in self.sites if site not in SITES]
        if unknown or not self.sites:
            raise ValueError(
                f"sites must be one or more of {', '.join(SITES)}, got "
                f"{', '.join(unknown) or 'none'}"
            )
        if not _is_step(self.surrogate):
            raise ValueError(
                f"surrogate must name a class of spikingjelly.activation_based."
                f"surrogate that fires 0 or 1, such as 'ATan', got {self.surrogate!r}"
            )
        if self.neuron not in ("atmn", "lif"):
            raise ValueError(f"neuron must be 'atmn' or 'lif', got {self.neuron!r}")
        how = (self.readout, self.fire_ratio, self.gradient)
        if self.neuron == "lif" and how != ("sum", 1.0, "surrogate"):
            raise ValueError(
                "neuron='lif' needs readout='sum', fire_ratio=1.0 and "
                f"gradient='surrogate', got {', '.join(map(repr, how))}"
            )
        self.coder(1)

    def coder(self, num_channels: int) -> Coder:
        """A coder of these numbers for `num_channels` channels."""
        if self.neuron == "lif":
            return LIFCoder(
                num_channels,
                time_steps=self.time_steps,
                tau=self.tau,
                surrogate_function=getattr(surrogate, self.surrogate)(),
                detach_reset=self.detach_reset,
            )
        return ATMNCoder(
            num_channels,
            time_steps=self.time_steps,
            tau=self.tau,
            readout=self.readout,
            fire_ratio=self.fire_ratio,
            gradient=self.gradient,
            surrogate_function=getattr(surrogate, self.surrogate)(),
            detach_reset=self.detach_reset,
        )


teach_transformers(SpikingConfig)


def _is_step(name: Any) -> bool:
    """Whether SpikingJelly has a surrogate of that name for the step function."""
    kind = getattr(surrogate, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(
        kind, surrogate.SurrogateFunctionBase
    ):
        return False
    try:
        fired = kind()(torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], device="cpu"))
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return fired.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


def fill_slots(backbone: nn.Module, config: SpikingConfig) -> None:
    """Give every slot of a model what `config` says: a coder or nothing.

    Raises:
        ValueError: where the model has no slots or plans, or no such layer or site.
    """
    insert_coders(backbone, config)


def coders(model: nn.Module) -> Iterator[tuple[str, Coder]]:
    """(name, coder) of every coder of a model, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Coder):
            yield name, module


def projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear, Coder]]:
    """(name, projection, coder) of every linear projection that a coder feeds.

    A coder that feeds several is given with each. What has taken the place of an
    nn.Linear, such as an adapter, is left out. Names are those of `get_submodule`, and
    `set_submodule` may replace what is given while the loop runs.
    """
    for owner in owners(model):
        for site, fed in owner.plan.sites.items():
            coder = getattr(owner.module, owner.plan.slot(site), None)
            if not isinstance(coder, Coder):
                continue
            for name in fed:
                projection = getattr(owner.module, name)
                if isinstance(projection, nn.Linear):
                    yield f"{owner.name}.{name}".lstrip("."), projection, coder


#: Follows where a model came from: what is there is not what spikify made of it.
_UNSAVED = " (made spiking since: save_pretrained it, and set name_or_path to where)"


def spikify(model: Any, config: SpikingConfig | None = None) -> Any:
    """`model` itself, with coders before its projections and `config.spiking` set.

    Llamba has slots for the coders; in other models the modules that have a plan get
    them (docs/hosts.md). A few tokens are then read in train and in eval mode, at once
    and from the cache, and every coder must code every one of them. All four sites of
    `config` stand for those that the model has. The coders start at threshold 1: run
    `calibrate` before the model is used.

    Raises:
        ValueError: for a model without plans, or that lacks a site or layer of
            `config`.
        RuntimeError: where a coder is left out, or reading from the cache differs. The
            model is then as it was.

    Warns:
        UserWarning: names the experts, which stay dense.
    """
    config = config or SpikingConfig()
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "some weights of the model have no memory here, so nothing can be run: "
            "load it without offloading to disk"
        )
    before = insert_coders(model, config)
    try:
        check_coders(model, dict(coders(model)))
    except BaseException:
        for owner, slots in before:
            fill(owner, slots)
        raise
    if hasattr(model, "config"):
        # other configs than Llamba's know nothing of ours, and can save a dictionary
        own = any(owner.plan.own_slots for owner, _ in before)
        model.config.spiking = config if own else asdict(config)
        if not own:
            mark_as_spiking(model.config)
    # peft writes down whence a model was loaded, and its adapters need this one
    if name := vars(model).get("name_or_path"):
        model.name_or_path = f"{name.removesuffix(_UNSAVED)}{_UNSAVED}"
    if experts := skipped(model):
        warnings.warn(f"these experts stay dense: {', '.join(experts)}", stacklevel=2)
    return model


#: Candidate thresholds, as shares of the one whose largest code is the largest value.
_SMALLEST_SHARE, _LARGEST_SHARE = 1 / 8, 2.0


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    candidates: int = 32,
) -> None:
    """Set each channel's threshold to the one with the least squared coding error.

    The activations are those of the dense model: while the batches pass, every coder
    hands on its input unchanged. The first pass finds each channel's largest value, the
    second the error of every candidate threshold, so memory does not grow with data.
    A channel that is always zero keeps its threshold. Where a batch has an
    `attention_mask`, tokens that it masks do not count.

    Args:
        model: a model with coders in its slots; its modes are left as they were.
        batches: what `model(**batch)` takes; run through twice.
        candidates: thresholds tried per channel, evenly spaced in the logarithm.

    Raises:
        ValueError: for a model without coders, no batch, no candidate, or a mask that
            does not say which tokens count.
    """
    found = dict(coders(model))
    batches = list(batches)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no coders to calibrate: call spikify first"
        )
    if not batches or candidates < 1:
        raise ValueError(
            "calibrate needs at least one batch and one candidate threshold, got "
            f"{len(batches)} batches and candidates={candidates}"
        )
    fits = {coder: _ThresholdFit(coder, candidates) for coder in found.values()}
    for look in (_ThresholdFit.see, _ThresholdFit.score):
        for batch in batches:
            with ExitStack() as hooks:
                hooks.enter_context(evaluating(model))
                for coder, fit in fits.items():
                    hook = _dense(partial(look, fit), batch.get("attention_mask"))
                    hooks.callback(coder.register_forward_hook(hook).remove)
                model(**batch)
    for fit in fits.values():
        fit.apply()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules of a model in evaluation mode inside the block, then as they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _dense(
    look: Callable[[Tensor], None], mask: Tensor | None
) -> Callable[..., Tensor]:
    """A forward hook that looks at a coder's input and hands it on as the output.

    It looks at [tokens, channels], those left out where `mask` is 0.
    """

    def hook(_coder: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
        tokens = args[0].flatten(0, -2)
        if mask is not None:
            if mask.numel() != len(tokens):
                raise ValueError(
                    "attention_mask must have one number for each token that a coder "
                    f"reads, got the shape {tuple(mask.shape)} for inputs of "
                    f"{tuple(args[0].shape)}"
                )
            tokens = tokens[mask.flatten().to(tokens.device) != 0]
        if len(tokens):
            look(tokens)
        return args[0]

    return hook


class _ThresholdFit:
    """The running coding error of each channel of one coder at each candidate."""

    def __init__(self, coder: Coder, candidates: int) -> None:
        self.coder = coder
        v_threshold = coder.v_threshold
        self.largest = torch.zeros_like(
            v_threshold, dtype=membrane_dtype(v_threshold.dtype)
        )
        self.shares = torch.logspace(
            math.log10(_SMALLEST_SHARE),
            math.log10(_LARGEST_SHARE),
            candidates,
            device=v_threshold.device,
        )
        self.errors = self.largest.new_zeros(candidates, *v_threshold.shape)

    def thresholds(self) -> Float[Tensor, "candidates channels"]:
        """The thresholds to choose from; 1 where a channel is always zero."""
        full = self.largest / sum(self.coder.weights)
        return torch.where(full > 0, self.shares[:, None] * full, 1.0)

    def see(self, x: Float[Tensor, "tokens channels"]) -> None:
        """Remember each channel's largest absolute value."""
        largest = x.abs().amax(0).to(self.largest)
        torch.maximum(self.largest, largest, out=self.largest)

    def score(self, x: Float[Tensor, "tokens channels"]) -> None:
        """Add what each candidate threshold loses of `x`."""
        wide = x.to(self.errors)
        for error, v_threshold in zip(self.errors, self.thresholds(), strict=True):
            residual = wide - self.coder.code(wide, v_threshold)
            error += residual.square_().sum(0)

    def apply(self) -> None:
        """Give the coder the thresholds with the least error."""
        best = self.errors.argmin(0, keepdim=True)
        chosen = self.thresholds().gather(0, best).squeeze(0)
        self.coder.v_threshold = torch.where(
            self.largest > 0, chosen, self.coder.v_threshold
        )
