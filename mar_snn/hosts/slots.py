"""Finds the modules of a model that have a plan, and fills their slots with coders."""

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mar_snn.hosts.plans import SITE_NAMES, Plan, plan_of
from mar_snn.hosts.view import run_through_slots, run_without_slots
from mar_snn.neurons.hooks import hand_over_hooks

if TYPE_CHECKING:
    from mar_snn.spiking import SpikingConfig

__all__ = ["Owner", "fill", "insert_coders", "owners", "skipped"]

#: What every host calls them.
_EXPERTS = "experts"


class Owner(NamedTuple):
    """A module with a plan."""

    name: str
    module: Any
    plan: Plan
    #: indices of the blocks that it stands in: several where blocks share it
    layers: frozenset[int]
    #: the name of one of its weights; of modules that are tied, one name for all
    weight: str


def owners(model: nn.Module) -> list[Owner]:
    """The modules of a model that have a plan, each once, experts left out.

    Blocks may share a module, or have one each and share the weights.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    found: dict[nn.Module, Owner] = {}
    layers: dict[str, frozenset[int]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        plan = plan_of(type(module))
        if plan is None or _EXPERTS in name.split("."):
            continue
        (first, *_), *_ = plan.sites.values()
        weight = tied.get(f"{name}.{first}.weight", f"{name}.{first}.weight")
        owner = Owner(name, module, plan, frozenset(), weight)
        weight = found.setdefault(module, owner).weight
        here = frozenset(i for i, _ in _places(model, name)[:1])
        layers[weight] = layers.get(weight, frozenset()) | here
    return [owner._replace(layers=layers[owner.weight]) for owner in found.values()]


def skipped(model: nn.Module) -> list[str]:
    """Names of the experts of a model: a router sends each a part of the tokens.

    They stay dense, whether their weights lie in one tensor or in a list of modules.
    """
    names = (name for name, _ in model.named_modules())
    return [name for name in names if name.rpartition(".")[2] == _EXPERTS]


def insert_coders(
    model: nn.Module, config: "SpikingConfig"
) -> list[tuple[Owner, dict[str, nn.Module]]]:
    """Fill every slot of a model with what `config` says: a coder or nothing.

    Returns:
        What the slots of each owner held before, for `fill`.

    Raises:
        ValueError: where no module has a plan, or no site or block is like that.
    """
    found = owners(model)
    if not found:
        raise ValueError(_unknown(model))
    sites = _sites(model, found, config)
    layers = _layers(model, found, config)
    planned = []
    made: dict[tuple[str, str], nn.Module] = {}
    for owner in found:
        chosen = layers is None or layers & owner.layers
        slots = {}
        for site in owner.plan.sites:
            if chosen and site in sites:
                key = (owner.weight, site)
                if key not in made:
                    made[key] = _coder(owner, site, config)
                slots[site] = made[key]
        planned.append((owner, slots))
    if not any(slots for _, slots in planned):
        raise ValueError(
            f"none of the blocks {sorted(layers or ())} of {type(model).__name__} has "
            f"a site {' or '.join(sites)}: choose other layers or sites"
        )
    return [(owner, fill(owner, slots)) for owner, slots in planned]


def fill(owner: Owner, coders: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Give the sites of `owner` these coders and the others none; what they had.

    What takes the place of another module takes over its hooks.
    """
    module, plan = owner.module, owner.plan
    before = {}
    for site in plan.sites:
        slot = plan.slot(site)
        held = getattr(module, slot, None)
        if held is not None and not isinstance(held, nn.Identity):
            before[site] = held
        new = coders.get(site, nn.Identity() if plan.own_slots else None)
        if new is not None:
            if held is not None and held is not new:
                hand_over_hooks(held, new)
            setattr(module, slot, new)
        elif held is not None:
            delattr(module, slot)
    if not plan.own_slots:
        (run_through_slots if coders else run_without_slots)(module)
    return before


def _coder(owner: Owner, site: str, config: "SpikingConfig") -> nn.Module:
    """A new coder for a site, where its projections are, in float32."""
    module, names = owner.module, owner.plan.sites[site]
    fed: list[Any] = [getattr(module, name, None) for name in names]
    widths = {getattr(projection, "in_features", None) for projection in fed}
    (width, *others) = widths
    if others or width is None:
        raise ValueError(
            f"the plan of {type(module).__name__} feeds {', '.join(names)} at "
            f"{site}, which must be linear projections of one width; {owner.name} has "
            f"{', '.join(type(projection).__name__ for projection in fed)}"
        )
    coder = config.coder(width).train(module.training)
    # of a quantized projection, the weights are buffers
    weights = chain(fed[0].parameters(), fed[0].buffers())
    return coder.to(next(weights).device, torch.float32)


def _sites(
    model: nn.Module, found: list[Owner], config: "SpikingConfig"
) -> tuple[str, ...]:
    """The sites of `config`; all four stand for those that the model has."""
    has = {site for owner in found for site in owner.plan.sites}
    missing = [site for site in config.sites if site not in has]
    if missing and set(config.sites) != set(SITE_NAMES):
        raise ValueError(
            f"{type(model).__name__} has the sites "
            f"{', '.join(site for site in SITE_NAMES if site in has)}, not "
            f"{', '.join(missing)}"
        )
    return tuple(site for site in config.sites if site in has)


def _layers(
    model: nn.Module, found: list[Owner], config: "SpikingConfig"
) -> set[int] | None:
    """The blocks of `config`, or None for all."""
    if config.layers is None:
        return None
    count = max(
        (size for owner in found for _, size in _places(model, owner.name)[:1]),
        default=0,
    )
    missing = [i for i in config.layers if i not in range(count)]
    if missing:
        which = f"lie in 0..{count - 1}" if count else "be None"
        raise ValueError(f"layers must {which} for this model, got {missing}")
    return set(config.layers)


def _places(model: nn.Module, name: str) -> list[tuple[int, int]]:
    """(index, length) for every list of modules on the way to `name`."""
    parts = name.split(".")
    return [
        (int(part), len(model.get_submodule(".".join(parts[:i]))))  # type: ignore[arg-type]
        for i, part in enumerate(parts)
        if part.isdigit()
    ]


def _unknown(model: nn.Module) -> str:
    """The sentence for a model without plans."""
    classes = {}
    for module in model.modules():
        linear = [
            name
            for name, child in module.named_children()
            if isinstance(child, nn.Linear)
        ]
        if linear:
            path = f"{type(module).__module__}.{type(module).__qualname__}"
            classes[path] = f"{path} ({', '.join(linear)})"
    return (
        f"spikify has no plan for a module of {type(model).__name__}. It takes Llamba "
        "and the models of docs/hosts.md; for another, say which projections its "
        "modules feed: mar_snn.hosts.register_plan('some.module.FeedForward', "
        "Plan(sites={'mlp.in': ('gate', 'up'), 'mlp.out': ('down',)})). Classes here "
        f"that hold linear projections: {'; '.join(classes.values()) or 'none'}"
    )
