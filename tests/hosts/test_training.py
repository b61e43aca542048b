"""Training, adapters and the counter on some hosts; on all in test_host_table.py."""

import copy

import pytest
import torch
from datasets import Dataset
from host_table import next_token_loss
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens

from mar_snn import SBDSConfig, SBDSTrainer, SpikeOpCounter
from mar_snn.spiking import coders, projections, spikify

# what peft calls, transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")

GENERATING = [name for name in HOSTS if not name.startswith("mamba_ssm")]


def gradients(model):
    next_token_loss(model, tokens()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", GENERATING)
def test_checkpointed_gradients_are_the_same(name):
    model = make_spiking(name).double().train()
    model.set_experts_implementation("eager")  # the default knows no float64
    other = copy.deepcopy(model)
    new = getattr(other, "activation_checkpointing_enable", None)
    (new or other.gradient_checkpointing_enable)()
    expected, found = gradients(model), gradients(other)
    assert list(found) == list(expected)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["Mamba2", "Bamba", "Llama"])
def test_a_spiking_host_is_distilled_from_the_dense_one(name, tmp_path):
    teacher, student = make_dense(name), make_spiking(name)
    before = copy.deepcopy(student)
    ids = tokens(rows=4)["input_ids"].tolist()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = SBDSConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SBDSTrainer(
        student, teacher, args=args, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    assert trainer.state.global_step == 2
    for (_, moved, coder), (_, linear, old) in zip(
        projections(student), projections(before), strict=True
    ):
        assert not torch.equal(moved.weight, linear.weight)
        assert not torch.equal(coder.v_threshold, old.v_threshold)


# ---- adapters


def adapted(model, names):
    how = LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    return get_peft_model(model, how).eval()


def test_an_adapter_reads_the_code_that_its_projection_reads():
    model = make_spiking("Llama")
    mlp = model.model.layers[0].mlp
    read = []
    adapter = adapted(model, ["down_proj"])
    lora = mlp.down_proj.lora_A["default"]
    lora.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    mlp.out_neuron.register_forward_hook(lambda *args: read.append(args[2]))
    adapter(**tokens())
    coded, found = read
    assert torch.equal(coded, found)


def test_adapters_are_saved_and_loaded(tmp_path):
    model = adapted(make_spiking("Bamba"), ["in_proj", "out_proj", "up_proj"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_spiking("Bamba"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**tokens()).logits, model(**tokens()).logits)


def test_a_model_with_adapters_can_spike():
    model = adapted(make_dense("Bamba"), ["in_proj", "down_proj"])
    spikify(model)
    assert len(list(coders(model))) == 10
    # of 13 projections, those that an adapter surrounds are no nn.Linear any more
    assert len(list(projections(model))) == 13 - 2 - 3


def test_thresholds_can_learn_beside_adapters():
    model = make_spiking("Llama")
    how = LoraConfig(
        r=2, target_modules=["down_proj"], modules_to_save=["in_neuron", "out_neuron"]
    )
    adapter = get_peft_model(model, how)
    next_token_loss(adapter, tokens()).backward()
    moving = [key for key, p in adapter.named_parameters() if p.grad is not None]
    assert sum(key.endswith("neuron.a") for key in moving) == 4


# ---- the counter


def test_the_counter_sees_the_spikes_of_each_projection():
    model = make_spiking("Llama")
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(**tokens())
    rows = {row.name: row.ops for row in counter.rows()}
    fed = {name for name, _, _ in projections(model)}
    assert {name for name, ops in rows.items() if ops.ac_add or ops.ac_sub} == fed
    # 2 x 12 tokens, 16 -> 24 features: as many accumulates as spikes, times 24
    events = []
    coder = model.model.layers[0].mlp.in_neuron
    coder.register_forward_hook(lambda c, args, _: events.append(c.encode(args[0])))
    with torch.no_grad():
        model(**tokens())
    spikes = int(events[0].abs().sum())
    ops = rows["model.layers.0.mlp.gate_proj"]
    assert ops.ac_add + ops.ac_sub == 24 * spikes


def test_generation_may_be_sampled_and_searched_and_padded():
    model = make_spiking("Bamba")
    prompt = tokens()["input_ids"]
    how = {"max_new_tokens": 4, "eos_token_id": None}
    assert model.generate(prompt, do_sample=True, **how).shape == (2, 16)
    assert model.generate(prompt, num_beams=2, do_sample=False, **how).shape == (2, 16)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], 1)
    mask = (padded != 0).long()
    plain = model.generate(prompt, do_sample=False, **how)
    shifted = model.generate(padded, attention_mask=mask, do_sample=False, **how)
    assert torch.equal(shifted[:, 3:], plain)
