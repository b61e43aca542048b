"""optimize_for_decoding: the same model, which reads less."""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM

from mar_snn.neurons import native
from mar_snn.sparse import (
    DenseLinear,
    EventLinear,
    decoding,
    kernels,
    optimize_for_decoding,
)
from mar_snn.spiking import coders, projections
from tests.bounds import assert_linear

#: measuring takes time, and another answer on each machine
ALWAYS = {"break_even": 1.0}


@pytest.fixture
def ids():
    return torch.randint(1, 64, (1, 12))


def modules(model, kind):
    return {name for name, module in model.named_modules() if type(module) is kind}


def test_every_projection_behind_a_coder_reads_by_input(model):
    expected = {name for name, _, _ in projections(model)}
    model.optimize_for_decoding(**ALWAYS)
    assert modules(model, EventLinear) == expected
    assert len(expected) == 2 * 5
    assert modules(model, DenseLinear) == {"lm_head"}
    assert not modules(model, nn.Linear)


def step_by_step(model, ids):
    cache, steps = None, []
    for token in ids.unbind(1):
        out = model(token[:, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    return torch.cat(steps, 1)


def test_the_logits_of_steps_and_of_whole_texts_stay(model, ids):
    with torch.no_grad():
        expected = model.double()(ids).logits
        optimize_for_decoding(model, **ALWAYS)
        for found in (model(ids).logits, step_by_step(model, ids)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights", ["same", "int8"])
def test_every_product_of_a_step_is_that_of_its_weights(model, ids, where, weights):
    optimize_for_decoding(model, weights=weights, head=weights, **ALWAYS)
    checked = []

    def check(linear, args, y):
        assert_linear(y, args[0], linear.dense_weight(torch.float64), linear.bias)
        checked.append(linear)

    for module in model.modules():
        if isinstance(module, EventLinear | DenseLinear):
            module.register_forward_hook(check)
    with torch.no_grad():
        step_by_step(model, ids[:, :3])
    assert len(checked) == 3 * (2 * 5 + 1)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"weights": "int8"}])
def test_generation_gives_the_same_tokens(model, ids, options):
    options = dict(options)
    weights = options.pop("weights", "same")
    options |= {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    other = copy.deepcopy(model.double())
    plan = optimize_for_decoding(model, weights=weights, **ALWAYS)
    assert plan.weights == weights
    if weights == "int8":  # the tokens of the rounded weights, multiplied by PyTorch
        for name, linear, _ in projections(model):
            with torch.no_grad():
                other.get_submodule(name).weight.copy_(
                    linear.dense_weight(torch.float64)
                )
    assert torch.equal(model.generate(ids, **options), other.generate(ids, **options))


def test_coders_run_in_c_where_there_is_a_compiler(model):
    optimize_for_decoding(model, **ALWAYS)
    expected = "auto" if native.obstacle() else "native"
    assert {coder.neuron.backend for _, coder in coders(model)} == {expected}


@pytest.mark.parametrize("broken", ["compiler", "cache", "one of the two sources"])
def test_where_c_cannot_run_it_is_said_once_and_the_tokens_stay(
    model, ids, broken, monkeypatch, tmp_path, caplog
):
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **how)
    impostor = tmp_path / "cc"
    impostor.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    impostor.chmod(0o755)
    monkeypatch.setattr(native, "_no_compiler", lambda: "")
    if broken == "one of the two sources":
        monkeypatch.setattr(native, "obstacle", lambda: "")
    if broken == "cache":
        monkeypatch.setenv("XDG_CACHE_HOME", str(impostor))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("CC", str(impostor))
    kernels._library.cache_clear()
    try:
        plan = optimize_for_decoding(model, **ALWAYS)
        assert torch.equal(model.generate(ids, **how), expected)
    finally:
        kernels._library.cache_clear()
    assert {shape.kernel for shape in plan.shapes} == {"PyTorch"}
    assert {coder.neuron.backend for _, coder in coders(model)} == {"auto"}
    (said,) = caplog.messages
    assert said.startswith("decoding on the CPU runs in PyTorch, which is slower: ")
    assert ("cannot be kept" if broken == "cache" else "it ended with 1") in said


def test_bfloat16_models_keep_their_dtype(model, ids):
    model = model.bfloat16()
    with torch.no_grad():
        before = model(ids[:, :1]).logits.float()
        optimize_for_decoding(model, **ALWAYS)
        after = model(ids[:, :1]).logits
    assert after.dtype == torch.bfloat16
    spread = before.std()
    assert (after.float() - before).abs().max() < 0.1 * spread


def test_an_int8_head_is_near_the_head(model, ids):
    with torch.no_grad():
        before = model(ids[:, :1]).logits
        optimize_for_decoding(model, head="int8", **ALWAYS)
        after = model(ids[:, :1]).logits
    assert model.lm_head.weight_int8 is not None
    assert model.get_input_embeddings().weight.dtype == torch.float32
    error = (after - before).norm() / before.norm()
    assert 0 < error < 0.02


def test_a_model_of_the_same_precision_can_still_be_saved(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    optimize_for_decoding(model, **ALWAYS)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert again.keys() == before.keys()
    assert all(again[name].equal(tensor) for name, tensor in before.items())


def test_thresholds_that_change_later_are_followed(model, ids):
    optimize_for_decoding(model.double(), **ALWAYS)
    other = copy.deepcopy(model)
    for each in (model, other):
        for _, coder in coders(each):
            coder.v_threshold = 3 * coder.v_threshold
    with torch.no_grad():
        steps = model(ids[:, :1]).logits
        # ten times the same row are many: a dense product
        many = other(ids[:, :1].expand(10, 1)).logits[:1]
    torch.testing.assert_close(steps, many, rtol=0, atol=1e-10)


def test_the_plan_has_a_line_for_each_shape(model):
    plan = optimize_for_decoding(model, **ALWAYS)
    found = {(s.inputs, s.outputs): s.count for s in plan.shapes}
    # two layers: in, out, gate and up, down
    assert found == {(24, 66): 2, (24, 24): 2, (24, 40): 4, (40, 24): 2}
    kernel = "PyTorch" if native.obstacle() else "C"
    assert {s.kernel for s in plan.shapes} == {kernel}
    line = (
        f"2 x [24 -> 66], 0.0 MB each: {kernel}, event-driven up to a density of 1.00"
    )
    assert str(plan).splitlines()[0] == line
    assert str(plan).splitlines()[-1] == "weights: same; LM head: same"


@pytest.mark.parametrize(
    ("low", "high", "dense", "expected"),
    [
        (1.0, 3.0, 3.0, 0.75),
        (1.0, 3.0, 2.0, 0.5),
        (1.0, 3.0, 0.1, 0.025),
        (1.0, 3.0, 9.0, 1.0),
        (3.0, 4.0, 0.1, 0.0),
        (2.0, 2.0, 3.0, 1.0),
        (2.0, 2.0, 1.0, 0.0),
    ],
)
def test_the_break_even_density_lies_where_the_times_meet(
    monkeypatch, low, high, dense, expected
):
    linears = [EventLinear(nn.Linear(400, 8)) for _ in range(3)]

    def seconds(found, x, event_driven):
        assert found == linears
        if not event_driven:
            return dense
        density = x.mean().item()
        assert min(abs(density - 0.25), abs(density - 0.75)) < 0.05
        return low if density < 0.5 else high

    monkeypatch.setattr(decoding, "_seconds", seconds)
    assert decoding.measure_break_even(linears) == pytest.approx(expected)


def test_the_break_even_density_is_measured_for_every_shape(model):
    plan = optimize_for_decoding(model)
    for shape in plan.shapes:
        assert 0.0 <= shape.break_even <= 1.0
    measured = {(s.inputs, s.outputs): s.break_even for s in plan.shapes}
    for _, linear, _ in projections(model):
        assert linear.break_even == measured[linear.in_features, linear.out_features]


def test_measuring_leaves_the_layers_as_they_were():
    linears = [EventLinear(nn.Linear(30, 8), break_even=0.3) for _ in range(2)]
    with torch.no_grad():
        decoding.measure_break_even(linears)
    assert [linear.break_even for linear in linears] == [0.3, 0.3]


def test_a_dense_model_is_refused(dense):
    with pytest.raises(ValueError, match="has no coders, so no weight could be left"):
        optimize_for_decoding(dense)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"head": "int4"}, "head must be 'same' or 'int8', got 'int4'"),
        ({"weights": "fp8"}, "weights must be 'same' or 'int8', got 'fp8'"),
        ({"break_even": 2.0}, "break_even is a density, 0 to 1, got 2.0"),
    ],
)
def test_what_cannot_be_is_refused(model, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        optimize_for_decoding(model, **(ALWAYS | wrong))


def test_a_model_is_optimized_once(model):
    optimize_for_decoding(model, **ALWAYS)
    with pytest.raises(ValueError, match="optimized already; load it again"):
        optimize_for_decoding(model, weights="int8")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")
def test_a_model_with_adapters_is_merged_first(model, ids):
    how = {"target_modules": ["down_proj"], "modules_to_save": ["in_neuron"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **how)).eval()
    # of two layers, two coders before a norm and one projection each
    sentence = r"around 6 projections or coders .* first \(merge_and_unload\)"
    with pytest.raises(ValueError, match=sentence):
        optimize_for_decoding(adapted, **ALWAYS)
    assert not modules(adapted, EventLinear)
    with torch.no_grad():
        expected = adapted(ids).logits
        merged = adapted.merge_and_unload()
        optimize_for_decoding(merged, **ALWAYS)
        torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)
    assert len(modules(merged, EventLinear)) == 10


class _Quantized(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / 2)


def test_weights_that_cannot_be_laid_out_leave_the_model_alone(model):
    changes = {
        "its weights have no memory here": lambda linear: linear.to("meta"),
        "its weight is computed from others": parametrizations.weight_norm,
        "its weight is computed": lambda m: prune.l1_unstructured(m, "weight", 0.5),
        "it is a Linear of torch.float8_e4m3fn": lambda m: m.to(torch.float8_e4m3fn),
        "it is a _Quantized of torch.float32": lambda _: _Quantized(24, 40),
    }
    for name in ("backbone.layers.1.mlp.up_proj", "lm_head"):
        before = model.get_submodule(name)
        for why, change in changes.items():
            model.set_submodule(name, change(copy.deepcopy(before)))
            with pytest.raises(
                ValueError, match=f"{name} cannot be laid out .*: {why}"
            ):
                optimize_for_decoding(model, **ALWAYS)
        model.set_submodule(name, before)
    assert not modules(model, EventLinear)
    assert {coder.neuron.backend for _, coder in coders(model)} == {"auto"}


def test_hooks_of_the_projections_and_of_the_head_stay(model, ids):
    seen = []
    for name in ("lm_head", "backbone.layers.0.mlp.up_proj"):
        linear = model.get_submodule(name)
        linear.register_forward_hook(lambda module, *_: seen.append(type(module)))
    add_hook_to_module(model.lm_head, AlignDevicesHook(execution_device="cpu"))
    optimize_for_decoding(model.train(), **ALWAYS)
    with torch.no_grad():
        model(ids[:, :1])
    assert seen == [EventLinear, DenseLinear]
    assert isinstance(model.lm_head._hf_hook, AlignDevicesHook)
    assert model.lm_head.training


def test_a_backend_that_was_chosen_stays(model):
    for _, coder in coders(model):
        coder.neuron.backend = "torch"
    optimize_for_decoding(model, **ALWAYS)
    assert {coder.neuron.backend for _, coder in coders(model)} == {"torch"}


def test_a_backend_that_the_environment_names_stays(model, monkeypatch):
    monkeypatch.setenv("MAR_SNN_BACKEND", "torch")
    optimize_for_decoding(model, **ALWAYS)
    assert {coder.neuron.backend for _, coder in coders(model)} == {"auto"}


def test_a_model_without_a_head_is_optimized_too(model, ids):
    with torch.no_grad():
        expected = model.double().backbone(ids[:, :1]).last_hidden_state
        optimize_for_decoding(model.backbone, **ALWAYS)
        found = model.backbone(ids[:, :1]).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert len(modules(model, EventLinear)) == 10
