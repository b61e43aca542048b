"""Plans: which projections of a class of modules get spikes, and by what detour not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["SITE_NAMES", "Plan", "plan_of", "register_plan"]

#: Where MAR (arXiv 2601.21503) has neurons: before the projections into and out of the
#: part of a block that mixes tokens and of the part that does not.
SITE_NAMES = ("mixer.in", "mixer.out", "mlp.in", "mlp.out")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one class of modules is made spiking.

    Args:
        sites: "mixer.in" and "mixer.out", or "mlp.in" and "mlp.out", or one of the two;
            for each the attributes that hold the projections it feeds. Projections of
            one site read the same tensor, and one coder codes it for all of them.
        overrides: attributes that the module's forward finds with these values, such as
            the switch of a fused kernel that would multiply with the weights of a
            projection itself.
        own_slots: whether the module's own forward calls `in_neuron` and `out_neuron`,
            which hold nn.Identity where there is no coder.

    Raises:
        ValueError: for sites that do not exist, or sites of both kinds.
    """

    sites: Mapping[str, tuple[str, ...]]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    own_slots: bool = False

    def __post_init__(self) -> None:
        unknown = [site for site in self.sites if site not in SITE_NAMES]
        kinds = {site.partition(".")[0] for site in self.sites}
        if unknown or len(kinds) != 1 or not all(self.sites.values()):
            raise ValueError(
                f"sites must be of {', '.join(SITE_NAMES[:2])} or of "
                f"{', '.join(SITE_NAMES[2:])}, each with one or more projections, got "
                f"{dict(self.sites)}"
            )

    @staticmethod
    def slot(site: str) -> str:
        """The attribute that holds the coder of a site."""
        return f"{site.partition('.')[2]}_neuron"


def register_plan(module_class: type[nn.Module] | str, plan: Plan) -> None:
    """From now on `spikify` follows `plan` in modules of this class.

    Subclasses follow it too, unless they have a plan of their own.

    Args:
        module_class: the class, or its dotted path, so that nothing need be imported.
        plan: the plan.

    Raises:
        ValueError: for a class that has a plan.
    """
    path = module_class if isinstance(module_class, str) else _path(module_class)
    if path in _plans:
        raise ValueError(f"{path} has a plan already: {_plans[path]}")
    _plans[path] = plan


def plan_of(module_class: type) -> Plan | None:
    """The plan of a class, or of the nearest class above it."""
    paths = map(_path, module_class.__mro__)
    return next((_plans[path] for path in paths if path in _plans), None)


def _path(module_class: type) -> str:
    return f"{module_class.__module__}.{module_class.__qualname__}"


_plans: dict[str, Plan] = {}

_MIXER = {"mixer.in": ("in_proj",), "mixer.out": ("out_proj",)}
_GATED = {"mlp.in": ("gate_proj", "up_proj"), "mlp.out": ("down_proj",)}
_LLAMBA = "mar_snn.llamba.modeling_llamba.Llamba"

register_plan(f"{_LLAMBA}Mixer", Plan(sites=_MIXER, own_slots=True))
register_plan(f"{_LLAMBA}MLP", Plan(sites=_GATED, own_slots=True))

# transformers. In training, and only there, these mixers hand the weight of out_proj to
# a fused kernel of mamba_ssm; they ask for nothing else whether they train.
_UNFUSED = Plan(sites=_MIXER, overrides={"training": False})
_TRANSFORMERS = {
    "mamba": {"MambaMixer": _UNFUSED},
    "falcon_mamba": {"FalconMambaMixer": _UNFUSED},
    "mamba2": {"Mamba2Mixer": _UNFUSED},
    "bamba": {"BambaMixer": _UNFUSED, "BambaMLP": Plan(sites=_GATED)},
    "falcon_h1": {"FalconH1Mixer": _UNFUSED, "FalconH1MLP": Plan(sites=_GATED)},
    "jamba": {"JambaMambaMixer": Plan(sites=_MIXER), "JambaMLP": Plan(sites=_GATED)},
    "llama": {"LlamaMLP": Plan(sites=_GATED)},
    "qwen2": {"Qwen2MLP": Plan(sites=_GATED)},
    "qwen3": {"Qwen3MLP": Plan(sites=_GATED)},
    # its adapters, one for each place where the shared module stands, stay dense
    "zamba2": {
        "Zamba2MambaMixer": _UNFUSED,
        "Zamba2MLP": Plan(
            sites={"mlp.in": ("gate_up_proj",), "mlp.out": ("down_proj",)}
        ),
    },
    "nemotron_h": {
        "NemotronHMamba2Mixer": _UNFUSED,
        "NemotronHMLP": Plan(sites={"mlp.in": ("up_proj",), "mlp.out": ("down_proj",)}),
    },
    "granitemoehybrid": {
        "GraniteMoeHybridMambaLayer": _UNFUSED,
        "GraniteMoeHybridMLP": Plan(
            sites={"mlp.in": ("input_linear",), "mlp.out": ("output_linear",)}
        ),
    },
}
for _model, _classes in _TRANSFORMERS.items():
    for _name, _plan in _classes.items():
        register_plan(f"transformers.models.{_model}.modeling_{_model}.{_name}", _plan)

# mamba_ssm. Mamba-1 multiplies with the weight of in_proj itself, so it has one site.
_SPLIT = Plan(sites=_MIXER, overrides={"use_mem_eff_path": False})
register_plan("mamba_ssm.modules.mamba2.Mamba2", _SPLIT)
register_plan("mamba_ssm.modules.mamba2_simple.Mamba2Simple", _SPLIT)
register_plan(
    "mamba_ssm.modules.mamba_simple.Mamba",
    Plan(sites={"mixer.out": ("out_proj",)}, overrides={"use_fast_path": False}),
)
register_plan(
    "mamba_ssm.modules.mlp.GatedMLP",
    Plan(sites={"mlp.in": ("fc1",), "mlp.out": ("fc2",)}),
)
