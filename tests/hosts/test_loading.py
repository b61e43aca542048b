"""save_pretrained and load; that every host comes back is in test_host_table.py."""

import json

import mamba_ssm_stand_in
import peft
import pytest
import torch
import transformers
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

from mar_snn import SpikingConfig, load
from mar_snn.neurons import LIFCoder
from mar_snn.spiking import coders, spikify


def thresholds(model):
    return {name: coder.v_threshold.detach() for name, coder in coders(model)}


def assert_same(one, two):
    """Bit for bit, and of one class."""
    assert type(one) is type(two)
    with torch.no_grad():
        assert torch.equal(one(**tokens()).logits, two(**tokens()).logits)


@pytest.fixture
def folder(tmp_path):
    """A spiking Llama."""
    make_spiking("Llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [n for n in HOSTS if not n.startswith("mamba_ssm")])
def test_the_model_is_read_in_its_dtype_and_the_thresholds_in_float32(name, tmp_path):
    model = make_spiking(name)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16)
    assert loaded.get_input_embeddings().weight.dtype == torch.bfloat16
    before, after = thresholds(model), thresholds(loaded)
    assert list(before) == list(after)
    for coder, v_threshold in before.items():
        assert after[coder].dtype == torch.float32
        assert torch.equal(after[coder], v_threshold)
    assert not loaded.training
    loaded(**tokens())


def test_files_in_several_shards_are_read(tmp_path):
    model = make_spiking("Bamba")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load(tmp_path), model)


def test_tied_weights_stay_tied(tmp_path):
    config = make_dense("Llama").config
    config.tie_word_embeddings = True
    model = spikify(AutoModelForCausalLM.from_config(config).eval())
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded, model)


def test_part_of_the_sites_and_other_neurons_come_back(tmp_path):
    how = {"neuron": "lif", "tau": 2.0, "readout": "sum", "fire_ratio": 1.0}
    how |= {"gradient": "surrogate", "layers": (1,), "sites": ("mlp.in",)}
    model = spikify(make_dense("Qwen3"), SpikingConfig(**how, time_steps=2))
    ((_, coder),) = coders(model)
    coder.v_threshold = torch.linspace(0.5, 2.0, 16)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        ((name, again),) = coders(load(tmp_path, dtype=dtype))
        assert name == "model.layers.1.mlp.in_neuron"
        assert isinstance(again, LIFCoder)
        assert again.time_steps == 2
        assert again.v_threshold.dtype == torch.float32
        assert torch.equal(again.v_threshold, coder.v_threshold)


def test_what_was_loaded_can_be_saved_and_loaded_again(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "again")
    assert_same(load(tmp_path / "again"), load(folder))


def test_a_model_is_placed_where_it_is_wanted(folder):
    model = load(folder, device_map="cpu")
    assert model.device.type == "cpu"
    assert {coder.v_threshold.device.type for _, coder in coders(model)} == {"cpu"}


def test_weights_may_stay_on_the_disk(folder, tmp_path):
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places["model.layers.1"] = "disk"
    model = load(folder, device_map=places, offload_folder=tmp_path / "offload")
    mlp = model.model.layers[1].mlp
    assert mlp.gate_proj.weight.is_meta
    assert not mlp.in_neuron.neuron.a.is_meta
    assert_same(model, load(folder))


def test_a_model_that_accelerate_has_hooks_in_can_spike():
    model = dispatch_model(make_dense("Llama"), {"": "cpu"}, force_hooks=True)
    plain = spikify(make_dense("Llama"))
    spikify(model)
    with torch.no_grad():
        assert torch.equal(model(**tokens()).logits, plain(**tokens()).logits)


@pytest.mark.parametrize("name", ["Llama", "Zamba2", "Jamba"])
def test_transformers_loads_the_coders_too(name, tmp_path):
    model = make_spiking(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert not loaded.is_quantized
    # and goes on to do so
    loaded.save_pretrained(tmp_path)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    for coder, v_threshold in thresholds(narrow).items():
        assert v_threshold.dtype == torch.float32
        assert torch.equal(v_threshold, thresholds(model)[coder])


def test_a_pipeline_generates_with_spikes(folder, byte_tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    told = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    assert thresholds(told.model).keys() == thresholds(make_spiking("Llama")).keys()


def test_files_of_before_the_mark_are_read_and_marked(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("quantization_config") == {"quant_method": "mar_snn"}
    path.write_text(json.dumps(config))
    loaded = load(folder)
    assert_same(loaded, make_spiking("Llama"))
    assert loaded.config.quantization_config == {"quant_method": "mar_snn"}


def test_another_quantization_method_may_be_asked_for(folder):
    with pytest.raises(ValueError, match=r"Unknown quantization type, got other"):
        load(folder, quantization_config={"quant_method": "other"})


def test_where_this_package_is_not_imported_transformers_warns(folder, monkeypatch):
    said = []
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "mar_snn")
    monkeypatch.setattr(auto.logger, "warning", said.append)
    AutoModelForCausalLM.from_pretrained(folder)
    assert said[0].startswith("Unknown quantization type, got mar_snn")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")
def test_adapters_are_loaded_onto_the_spiking_model(folder, tmp_path):
    how = peft.LoraConfig(
        r=2,
        target_modules=["down_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    for model in (load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        adapted = peft.get_peft_model(model, how).eval()
        adapted.save_pretrained(tmp_path / "adapter")
        again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
        assert_same(again.eval(), adapted)
        assert thresholds(again)


@pytest.mark.parametrize("kind", ["dense", "spiking"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")
def test_adapters_of_a_model_that_was_never_saved_are_not_loaded(
    llambas, kind, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(llambas[kind])
    for _ in range(2):
        spikify(model)
    how = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, how)
    with pytest.warns(UserWarning, match="made spiking since"):
        adapted.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=rf"{kind}\d* .made spiking since: save_pretr"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_the_dense_host_finds_its_weights(folder):
    dense, info = AutoModelForCausalLM.from_pretrained(
        folder, spiking=None, output_loading_info=True
    )
    assert_same(dense, make_dense("Llama"))
    assert not hasattr(dense.config, "quantization_config")
    assert not info["missing_keys"]
    added = {f"{name}.neuron.a" for name in thresholds(make_spiking("Llama"))}
    assert set(info["unexpected_keys"]) == added


def test_a_model_without_a_head_comes_back(tmp_path):
    model = spikify(make_dense("Mamba2").backbone)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    assert len(thresholds(loaded)) == 4


def test_fields_of_the_config_may_be_changed_while_loading(folder):
    assert load(folder, use_cache=False).config.use_cache is False


def test_the_config_may_be_passed(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.spiking["layers"] = [1]
    with pytest.raises(ValueError, match=r"unexpected keys: model\.layers\.0\.mlp"):
        load(folder, config=config)


# ---- what cannot be loaded


@pytest.fixture
def rewrite(folder):
    """Change the tensors of the spiking Llama's file."""

    def rewrite(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def test_a_threshold_that_is_missing_is_named(folder, rewrite):
    name = "model.layers.1.mlp.in_neuron.neuron.a"
    rewrite(lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"missing keys: {name}$"):
        load(folder)


def test_a_tensor_that_has_no_place_is_named(folder, rewrite):
    rewrite(lambda tensors: tensors.update(other=torch.ones(1)))
    with pytest.raises(ValueError, match=r"unexpected keys: other$"):
        load(folder)


def test_a_dense_model_is_refused(tmp_path):
    make_dense("Llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a dense model: load it with"):
        load(tmp_path)


def test_a_repository_that_does_not_exist_is_an_error_of_the_hub():
    with pytest.raises(OSError, match="couldn't"):
        load("nobody/nothing", local_files_only=True)


def test_a_model_in_16_bits_comes_back_in_16_bits(tmp_path):
    model = make_spiking("Mamba2").bfloat16()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert_same(loaded, model)


def test_a_class_that_nobody_has_is_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"architectures": ["MyOwnModel"]}))
    with pytest.raises(ValueError, match=r"architectures \['MyOwnModel'\], none of"):
        load(folder)


# ---- mamba_ssm


@pytest.fixture
def mamba_ssm_folder(tmp_path):
    make_spiking("mamba_ssm Mamba2").save_pretrained(tmp_path)
    with mamba_ssm_stand_in.installed():
        yield tmp_path


def test_a_model_of_mamba_ssm_is_read_in_its_dtype(mamba_ssm_folder):
    model = load(mamba_ssm_folder, dtype=torch.bfloat16, device="cpu")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.lm_head.weight is model.backbone.embedding.weight
    wanted = thresholds(make_spiking("mamba_ssm Mamba2"))
    for name, v_threshold in thresholds(model).items():
        assert v_threshold.dtype == torch.float32
        assert torch.equal(v_threshold, wanted[name])
    assert not model.training
    model.save_pretrained(mamba_ssm_folder)
    load(mamba_ssm_folder)


def test_a_dense_model_of_mamba_ssm_is_refused(tmp_path):
    make_dense("mamba_ssm Mamba2").save_pretrained(tmp_path)
    with (
        mamba_ssm_stand_in.installed(),
        pytest.raises(ValueError, match="holds a dense model"),
    ):
        load(tmp_path)


def test_tensors_that_mamba_ssm_does_not_know_are_named(mamba_ssm_folder):
    path = mamba_ssm_folder / "pytorch_model.bin"
    tensors = torch.load(path)
    tensors["other"] = tensors.pop("backbone.layers.0.mixer.in_neuron.neuron.a")
    torch.save(tensors, path)
    with pytest.raises(
        ValueError, match=r"missing keys: .*0\.mixer\.in_neuron.*unexpected keys: other"
    ):
        load(mamba_ssm_folder)


def test_without_mamba_ssm_its_models_say_what_is_missing(tmp_path):
    make_spiking("mamba_ssm Mamba2").save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'mar-snn\[mamba\]'"):
        load(tmp_path)
