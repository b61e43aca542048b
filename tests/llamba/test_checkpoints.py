"""Checkpoints as they were released, written here at a small size, load unchanged."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import SpikingConfig

#: The fields and the order of the released config.json, nothing else.
CONFIG = {
    "model_type": "llamba",
    "vocab_size": 48,
    "tie_embeddings": True,
    "pad_vocab_size_multiple": 8,
    "lm_head_bias": False,
    "d_model": 24,
    "n_layer": 3,
    "resid_dropout": 0.0,
    "norm_epsilon": 1e-06,
    "mlp_cfg": {"intermediate_size": 40, "bias": False, "act_fn": "silu"},
    "ssm_cfg": {
        "d_state": 5,
        "n_v_heads": 4,
        "n_qk_heads": 2,
        "expand": 1,
        "chunk_size": 16,
        "activation": "identity",
        "bias": False,
    },
}


def released_tensors(tied: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every key of a released file, with shapes of three layers of width 24."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embedding.weight": (48, 24),
        "backbone.final_layernorm.weight": (24,),
    }
    for i in range(3):
        shapes |= {
            f"backbone.layers.{i}.input_layernorm.weight": (24,),
            # x 24, B and C 2 · 5 each; z 24; A_log 4
            f"backbone.layers.{i}.mixer.in_proj.weight": (44 + 24 + 4, 24),
            f"backbone.layers.{i}.mixer.conv1d.weight": (44, 1, 4),
            f"backbone.layers.{i}.mixer.conv1d.bias": (44,),
            f"backbone.layers.{i}.mixer.z_bias": (24,),
            f"backbone.layers.{i}.mixer.D": (4,),
            f"backbone.layers.{i}.mixer.out_proj.weight": (24, 24),
            f"backbone.layers.{i}.post_attention_layernorm.weight": (24,),
            f"backbone.layers.{i}.mlp.gate_proj.weight": (40, 24),
            f"backbone.layers.{i}.mlp.up_proj.weight": (40, 24),
            f"backbone.layers.{i}.mlp.down_proj.weight": (24, 40),
        }
    if not tied:
        shapes["lm_head.weight"] = (48, 24)
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def release(
    folder: Path, *, tied=True, sharded=False, dtype=torch.float32
) -> dict[str, Tensor]:
    """Write a checkpoint; its files say nothing of PyTorch in their metadata."""
    tensors = released_tensors(tied, dtype)
    config = CONFIG | {"tie_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if not sharded:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def assert_holds(model: LlambaForCausalLM, tensors: dict[str, Tensor]) -> None:
    state = model.state_dict()
    for name, tensor in tensors.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].equal(tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_released_checkpoint_loads_bit_for_bit(tmp_path, tied, sharded, dtype):
    tensors = release(tmp_path, tied=tied, sharded=sharded, dtype=dtype)
    for loader in (LlambaForCausalLM, AutoModelForCausalLM):
        model, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(model, LlambaForCausalLM)
        assert not any(info.values()), info
        assert_holds(model, tensors)
        assert (model.lm_head.weight is model.backbone.embedding.weight) == tied
        assert model(torch.arange(5)[None]).logits.isfinite().all()


def test_what_the_file_says_is_what_the_model_does(tmp_path):
    release(tmp_path)
    config = LlambaForCausalLM.from_pretrained(tmp_path).config
    assert (config.d_model, config.n_layer, config.vocab_size) == (24, 3, 48)
    assert config.norm_epsilon == 1e-6
    assert config.mlp_cfg == CONFIG["mlp_cfg"]
    assert CONFIG["ssm_cfg"].items() <= config.ssm_cfg.items()
    assert config.spiking is None


def test_the_dtype_may_be_chosen(tmp_path):
    tensors = release(tmp_path)
    model = LlambaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_holds(model, {name: t.bfloat16() for name, t in tensors.items()})


def test_a_saved_model_has_the_released_keys_again(tmp_path):
    tensors = release(tmp_path)
    LlambaForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(again[name].equal(tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_spiking_model_only_the_thresholds_are_missing_and_start_at_one(
    tmp_path, sharded
):
    tensors = release(tmp_path, sharded=sharded)
    model, info = LlambaForCausalLM.from_pretrained(
        tmp_path,
        spiking=SpikingConfig(layers=(0, 2)),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    slots = ("mixer.in", "mixer.out", "mlp.in", "mlp.out")
    thresholds = {
        f"backbone.layers.{i}.{slot}_neuron.neuron.a" for i in (0, 2) for slot in slots
    }
    assert info.pop("missing_keys") == thresholds
    assert not any(info.values()), info
    parameters = dict(model.named_parameters())
    for name in thresholds:
        assert parameters[name].dtype == torch.float32
        assert parameters[name].eq(0).all()
    coder = model.backbone.layers[2].mlp.out_neuron
    assert coder.v_threshold.eq(1).all()
    assert_holds(model, {name: t.bfloat16() for name, t in tensors.items()})


def test_a_device_map_places_every_block_and_changes_nothing(tmp_path):
    tensors = release(tmp_path)
    for placed in ("cpu", {"": "cpu"}):
        model = LlambaForCausalLM.from_pretrained(tmp_path, device_map=placed)
        assert_holds(model, tensors)
        assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("spiking", [None, SpikingConfig()])
def test_a_model_made_without_memory_takes_a_checkpoint(tmp_path, spiking):
    tensors = release(tmp_path)
    with torch.device("meta"):
        model = LlambaForCausalLM(LlambaConfig(**CONFIG, spiking=spiking))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    model.init_weights()  # what no file holds
    model.tie_weights()
    result = model.load_state_dict(tensors, strict=False)
    missing = {n for n in result.missing_keys if not n.endswith("neuron.a")}
    assert missing == {"lm_head.weight"}  # the embedding
    assert not result.unexpected_keys
    assert_holds(model, tensors)
    loaded = LlambaForCausalLM.from_pretrained(tmp_path, spiking=spiking)
    ids = torch.arange(7)[None]
    assert model.eval()(ids).logits.equal(loaded(ids).logits)


@pytest.mark.parametrize(
    ("width", "layers", "inner", "millions"),
    [(2048, 16, 8192, 1405.2), (3072, 28, 8192, 3657.0), (4096, 32, 14336, 8315.9)],
)
def test_the_released_sizes_have_their_numbers_of_parameters(
    width, layers, inner, millions
):
    config = LlambaConfig(
        d_model=width, n_layer=layers, mlp_cfg={"intermediate_size": inner}
    )
    with torch.device("meta"):
        model = LlambaForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == millions
    assert len(model.state_dict()) == 11 * layers + 3  # the tied head is listed too


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("MAR_SNN_HUB") != "1",
    reason="downloads 5.6 GB: MAR_SNN_HUB=1 HF_HUB_OFFLINE=0 pytest -m slow",
)
def test_the_real_llamba_1b_loads_and_continues_a_text():
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        folder = snapshot_download("cartesia-ai/Llamba-1B")
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        pytest.skip(f"the hub cannot be reached: {error}")
    model, info = LlambaForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 1405.2
    # of Llama 3's tokenizer: <|begin_of_text|> 1 2 3 ... with a space before each
    ids = torch.tensor([[128000, 220, 16, 220, 17, 220, 18, 220, 19, 220, 20, 220]])
    written = model.generate(
        ids, max_new_tokens=1, do_sample=False, pad_token_id=128001
    )
    assert written[0, -1] == 21  # "6"
