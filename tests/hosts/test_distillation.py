"""Every host as a student and a teacher: its residual stream, and its memory."""

import math

import pytest
import torch
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens

from mar_snn.distill import SBDSConfig
from mar_snn.distill.features import norms, record_features
from mar_snn.distill.memory import estimate_memory
from mar_snn.distill.objective import Objective
from tests.distill.test_memory import measured

HOSTS_OF_TRANSFORMERS = [name for name in HOSTS if not name.startswith("mamba_ssm")]


def objective(name, tmp_path, **options) -> Objective:
    teacher = make_dense(name).requires_grad_(False)
    args = SBDSConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=3,
        **options,
    )
    return Objective(make_spiking(name), teacher, args)


@pytest.mark.parametrize("name", HOSTS_OF_TRANSFORMERS)
def test_every_host_is_distilled_by_its_residual_stream(name, tmp_path):
    options = {"feature_points": "both", "firing_rate_target": 0.1}
    step = objective(name, tmp_path, **options)
    ids = tokens(rows=3, length=8)["input_ids"]
    with step.attached():
        loss, terms, _ = step(
            step.student.train(), {"input_ids": ids}, ids, torch.tensor(24)
        )
        # in and out of every norm
        assert len(step.alignment.distances) == 2 * len(norms(step.student))
        assert {d.shape for d in step.alignment.distances} == {(3, 8)}
        loss.backward()
    assert all(0 < term.item() < math.inf for term in terms.values())


def test_the_norms_of_a_mixer_are_none_of_the_residual_stream():
    layers = range(2)
    block = ("input_layernorm", "post_attention_layernorm")
    expected = [f"model.layers.{i}.{norm}" for i in layers for norm in block]
    model = make_dense("Qwen3")
    assert list(norms(model)) == [*expected, "model.norm"]
    with record_features(model) as features:
        hidden = model(**tokens(), output_hidden_states=True).hidden_states
    for i in layers:
        entering = features[f"model.layers.{i}.input_layernorm.input"]
        assert entering.equal(hidden[i])
    jamba = [name.rpartition(".")[2] for name in norms(make_dense("Jamba"))]
    assert jamba == ["input_layernorm", "pre_ff_layernorm"] * 2 + ["final_layernorm"]
    # blocks in blocks: the shared one, and the mixer's behind it
    zamba = [n for n in norms(make_dense("Zamba2")) if n.startswith("model.layers.1.")]
    assert sorted(zamba) == [
        "model.layers.1.mamba_decoder.input_layernorm",
        "model.layers.1.shared_transformer.input_layernorm",
        "model.layers.1.shared_transformer.pre_ff_layernorm",
    ]


@pytest.mark.parametrize("name", ["NemotronH", "FalconMamba"])
def test_the_memory_of_a_host_is_what_a_real_step_takes(name, tmp_path):
    step = objective(name, tmp_path)
    estimate = estimate_memory(step, 8)
    beyond = estimate.total - estimate.student - estimate.teacher
    assert beyond == pytest.approx(measured(step, 3, 8), rel=0.02)


def test_a_host_whose_step_needs_numbers_is_not_estimated(tmp_path):
    step = objective("Jamba", tmp_path)
    for model in (step.student, step.teacher):
        model.set_experts_implementation("eager")
    with pytest.raises(ValueError, match=r"memory of a JambaForCausalLM .* estimated"):
        estimate_memory(step, 8)
