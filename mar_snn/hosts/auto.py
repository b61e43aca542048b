"""The loaders of transformers give a spiking model of theirs its coders back.

`spikify` marks the config as that of a quantization method, which is ours. When
transformers meets the mark it has us change the model before it reads the weights, so
that AutoModelForCausalLM, pipelines and peft load what was saved. Where this package is
not imported it warns that it does not know the method.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate.hooks import (  # type: ignore[import-untyped]
    remove_hook_from_module,
)
from accelerate.utils import (  # type: ignore[import-untyped]
    set_module_tensor_to_device,
)
from torch import nn
from transformers import PreTrainedConfig
from transformers.quantizers.auto import (
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mar_snn.hosts.slots import insert_coders
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder

if TYPE_CHECKING:
    from mar_snn.spiking import SpikingConfig

__all__ = [
    "fetch_thresholds",
    "give_coders",
    "mark_as_spiking",
    "teach_transformers",
    "without_mark",
]

_METHOD = "mar_snn"


class _Method(QuantizationConfigMixin):
    """What transformers makes of the mark; the numbers stand in `config.spiking`."""

    def __init__(self, **_: Any) -> None:
        self.quant_method: Any = _METHOD


def mark_as_spiking(config: Any) -> None:
    """Have transformers give the models of this config coders when it loads them.

    A config that names another quantization method keeps it: such a model is loaded by
    `mar_snn.load`.
    """
    if isinstance(config, PreTrainedConfig) and not hasattr(
        config, "quantization_config"
    ):
        config.quantization_config = {"quant_method": _METHOD}


def without_mark(config: PreTrainedConfig) -> PreTrainedConfig:
    """`config` itself, which leaves the method to whoever loads the model."""
    if getattr(config, "quantization_config", None) == {"quant_method": _METHOD}:
        del config.quantization_config
    return config


def give_coders(model: Any, config: "SpikingConfig") -> None:
    """Put coders into a model of transformers that has not read its weights."""
    insert_coders(model, config)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(True)
    # whatever the dtype of the weights
    kept = model._keep_in_fp32_modules_strict or ()
    model._keep_in_fp32_modules_strict = {*kept, "in_neuron", "out_neuron"}


def teach_transformers(config_class: type["SpikingConfig"]) -> None:
    """Register the method; once, where the class of the configs is known."""

    @register_quantizer(_METHOD)
    class CoderLoader(HfQuantizer):
        """What from_pretrained calls for a config with the mark."""

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
            # a caller may ask for the dense model, or have given it coders already
            if model.config.spiking is not None and not list(_coders(model)):
                give_coders(model, config_class(**model.config.spiking))

        def postprocess_model(self, model: Any, **_: Any) -> Any:
            # to whoever asks later this is a model of plain weights
            self.remove_quantization_config(model)
            if model.config.spiking is not None:
                mark_as_spiking(model.config)
            fetch_thresholds(model)
            return model

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

    register_quantization_config(_METHOD)(_Method)


def fetch_thresholds(model: nn.Module) -> None:
    """Bring back thresholds that `device_map` has put elsewhere with their block.

    accelerate brings weights when their module is called; a coder reads those of its
    neuron without a call.
    """
    for coder in _coders(model):
        for module in coder.modules():
            for name, tensor in (module._parameters | module._buffers).items():
                if tensor is not None and tensor.is_meta:
                    hook: Any = module._hf_hook
                    value = hook.weights_map[name]
                    remove_hook_from_module(module)
                    device = hook.execution_device
                    set_module_tensor_to_device(module, name, device, value)


def _coders(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, ATMNCoder | LIFCoder))
