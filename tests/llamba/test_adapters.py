"""LoRA adapters of PEFT on every projection, dense and spiking."""

import copy

import pytest
import torch

from mar_snn.llamba import LlambaForCausalLM
from mar_snn.spiking import SpikingConfig, calibrate, spikify

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.24 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.")

PROJECTIONS = ["in_proj", "out_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(params=["dense", "spiking"])
def base(request, config, ids) -> LlambaForCausalLM:
    config.initializer_range = 0.2
    model = LlambaForCausalLM(config).double().eval()
    if request.param == "spiking":
        spikify(model, SpikingConfig())
        calibrate(model, [{"input_ids": ids}])
    return model


def adapted(base: LlambaForCausalLM):
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, target_modules=PROJECTIONS, lora_dropout=0.0
    )
    return peft.get_peft_model(base, settings).double()


def halves(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def trained(base: LlambaForCausalLM, ids: torch.Tensor):
    """A model whose adapters have moved away from zero."""
    model = adapted(base)
    optimizer = torch.optim.SGD(halves(model).values(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def test_every_adapter_trains_and_nothing_else(base, ids):
    before = copy.deepcopy(dict(base.named_parameters()))
    model = trained(base, ids)
    lora = halves(model)
    # A and B of five projections in two layers
    assert len(lora) == 2 * 5 * 2
    for name, parameter in lora.items():
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in model.get_base_model().named_parameters():
        if ".lora_" not in name:
            assert parameter.equal(before[name.replace(".base_layer", "")])


def test_merged_is_unmerged(base, ids):
    plain = base(ids).logits
    model = trained(base, ids)
    unmerged = model(input_ids=ids).logits
    written = model.generate(input_ids=ids[:, :9], max_new_tokens=6, do_sample=False)
    assert (unmerged - plain).abs().max() > 1e-2
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, unmerged, rtol=0, atol=1e-10)
    again = merged.generate(input_ids=ids[:, :9], max_new_tokens=6, do_sample=False)
    assert again.equal(written)


def test_decoding_with_adapters_is_the_full_pass(base, ids):
    model = trained(base, ids)
    full = model(input_ids=ids, use_cache=False).logits
    outputs = model(input_ids=ids[:, :50])
    cache, logits = outputs.past_key_values, [outputs.logits]
    with torch.no_grad():
        for t in range(50, 55):
            step = model(input_ids=ids[:, t : t + 1], past_key_values=cache)
            logits.append(step.logits)
    torch.testing.assert_close(torch.cat(logits, 1), full[:, :55], rtol=0, atol=1e-10)


def test_adapters_are_saved_beside_the_model_and_loaded_onto_it(base, ids, tmp_path):
    expected = (model := trained(base, ids))(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    fresh = model.unload()
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)


def test_prompt_tuning_takes_batches_that_are_padded(base, ids):
    settings = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        num_attention_heads=1,  # which PEFT asks for, and prompts do not use
    )
    model = peft.get_peft_model(base, settings).double().eval()
    mask = torch.ones_like(ids[:, :9])
    mask[0, :4] = 0
    batch = {"input_ids": ids[:, :9], "attention_mask": mask}
    logits = model(**batch).logits[0, 3 + 4 :]
    alone = model(input_ids=ids[:1, 4:9], attention_mask=mask[:1, 4:]).logits[0, 3:]
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-10)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    written = model.generate(**batch, **options)[0, 9:]
    alone = model.generate(input_ids=ids[:1, 4:9], **options)[0, 5:]
    assert written.equal(alone)
    model(**batch, labels=ids[:, :9]).loss.backward()
    assert model.prompt_encoder.default.embedding.weight.grad.abs().min() > 0


def test_prefix_tuning_is_refused_with_a_sentence(base, ids):
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        num_layers=2,
        token_dim=24,
        num_attention_heads=4,
    )
    model = peft.get_peft_model(base, settings)
    with pytest.raises(ValueError, match="prefix tuning is keys and values: use LoRA"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="prefix tuning is keys and values: use LoRA"):
        model.generate(input_ids=ids, max_new_tokens=2)
