"""Loads spiking models, of this package and of others, in one call."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

import mar_snn.llamba
from mar_snn.hosts.auto import (
    fetch_thresholds,
    give_coders,
    mark_as_spiking,
    without_mark,
)
from mar_snn.spiking import SpikingConfig, fill_slots

__all__ = ["load"]

#: Arguments of from_pretrained that say where the files are.
_WHERE = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


def load(folder: str | Path, **kwargs: Any) -> Any:
    """The spiking model that `save_pretrained` wrote to `folder`, in eval mode.

    Its class is the one it was saved from. Coders stand where `spikify` put them before
    the weights are read, so that thresholds are read like weights and stay in float32.

    Args:
        folder: a folder, or a repository of the Hugging Face hub.
        kwargs: what the model's `from_pretrained` takes, such as `dtype`, `device_map`
            or `revision`; for mamba_ssm `dtype` and `device`.

    Raises:
        ValueError: for a dense model, a class that is not found, or files whose tensors
            are not those of the model.
    """
    if _is_of_mamba_ssm(folder):
        return _load_mamba_ssm(Path(folder), **kwargs)
    where = {name: kwargs[name] for name in _WHERE if name in kwargs}
    config = kwargs.get("config") or AutoConfig.from_pretrained(folder, **where)
    if getattr(config, "spiking", None) is None:
        raise _dense(folder)
    model_class = _class_of(config)
    if "quantization_config" in kwargs:
        kwargs["config"] = without_mark(config)
    model, info = _with_coders(model_class).from_pretrained(
        folder, output_loading_info=True, **kwargs
    )
    model.__class__ = model_class
    _assert_complete(folder, {k: info[k] for k in ("missing_keys", "unexpected_keys")})
    fetch_thresholds(model)
    if isinstance(model.config.spiking, dict):
        mark_as_spiking(model.config)  # which the files of mar_snn 0.1 lack
    return model


def _class_of(config: PreTrainedConfig) -> Any:
    """The class that a config was saved from."""
    names = config.architectures or []
    for name in names:
        for home in (transformers, mar_snn.llamba):
            if hasattr(home, name):
                return getattr(home, name)
    raise ValueError(
        f"the config names the architectures {names}, none of which is a class of "
        "transformers or of mar_snn.llamba: build the model, call spikify, and "
        "load_state_dict"
    )


def _with_coders(model_class: Any) -> Any:
    """A subclass, of the same name, whose models are born with their coders."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        model_class.__init__(self, config, *args, **kwargs)
        if isinstance(config.spiking, dict):  # Llamba's own makes a SpikingConfig
            give_coders(self, SpikingConfig(**config.spiking))

    names = {
        name: getattr(model_class, name) for name in ("__module__", "__qualname__")
    }
    return type(model_class.__name__, (model_class,), names | {"__init__": __init__})


def _dense(folder: str | Path) -> ValueError:
    return ValueError(
        f"{folder} holds a dense model: load it with from_pretrained, then call "
        "spikify and calibrate"
    )


def _assert_complete(folder: str | Path, info: dict[str, Any]) -> None:
    """Raise unless the files held the tensors of the model and no others."""
    wrong = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(names))}"
        for kind, names in info.items()
        if names
    ]
    if wrong:
        raise ValueError(
            f"the files of {folder} are not those of the spiking model that its config "
            f"describes; {'; '.join(wrong)}"
        )


# ---- mamba_ssm, whose files are a config without a type and one pickle of tensors


def _is_of_mamba_ssm(folder: str | Path) -> bool:
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    config = json.loads(path.read_text(encoding="utf-8"))
    return "ssm_cfg" in config and "model_type" not in config


def _load_mamba_ssm(
    folder: Path, *, dtype: torch.dtype | None = None, device: Any = None
) -> nn.Module:
    try:
        models = import_module("mamba_ssm.models.mixer_seq_simple")
        configs = import_module("mamba_ssm.models.config_mamba")
    except ImportError as error:
        raise ImportError(
            f"{folder} holds a model of mamba_ssm: pip install 'mar-snn[mamba]'"
        ) from error
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    spiking = settings.pop("spiking", None)
    if spiking is None:
        raise _dense(folder)
    model = models.MambaLMHeadModel(configs.MambaConfig(**settings), dtype=dtype)
    fill_slots(model, SpikingConfig(**spiking))
    model.config.spiking = spiking
    tensors = torch.load(folder / "pytorch_model.bin", "cpu", weights_only=True)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    _assert_complete(folder, {"missing_keys": missing, "unexpected_keys": unexpected})
    return model.eval().to(device)
