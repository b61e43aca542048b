import pytest
import torch
from torch import nn

from mar_snn.distill.features import norms, record_features


def test_every_norm_of_a_llamba_is_found_in_order(teacher):
    layers = [
        f"backbone.layers.{i}.{norm}"
        for i in range(2)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    assert list(norms(teacher)) == [*layers, "backbone.final_layernorm"]


def test_pre_norm_features_are_the_residual_stream(teacher):
    ids = torch.tensor([[1, 2, 3]])
    with record_features(teacher) as features:
        hidden = teacher(ids, output_hidden_states=True).hidden_states
    assert len(features) == 5
    for i in range(2):
        entering = features[f"backbone.layers.{i}.input_layernorm.input"]
        assert entering.equal(hidden[i])
    # transformers' last hidden state is behind the last norm, ours before it
    last = features["backbone.final_layernorm.input"]
    assert teacher.backbone.final_layernorm(last).equal(hidden[-1])
    assert not last.equal(hidden[-1])


def test_post_norm_features_are_what_leaves_the_norm_and_both_are_both(teacher):
    ids = torch.tensor([[1, 2, 3]])
    with record_features(teacher, "post_norm") as after:
        teacher(ids)
    with record_features(teacher, "both") as both:
        teacher(ids)
    assert len(after) == 5
    assert len(both) == 10
    for name, feature in after.items():
        assert both[name].equal(feature)
        norm = teacher.get_submodule(name.removesuffix(".output"))
        assert norm(both[name.replace(".output", ".input")]).equal(feature)


def test_no_hook_outlives_the_block(teacher):
    with pytest.raises(RuntimeError), record_features(teacher) as features:
        raise RuntimeError
    teacher(torch.tensor([[1, 2, 3]]))
    assert features == {}


@pytest.mark.usefixtures("float64")
def test_gradients_through_recorded_features_survive_checkpointing(student):
    ids = torch.tensor([[1, 2, 3, 4]])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            old = student.gradient_checkpointing_enable
            getattr(student, "activation_checkpointing_enable", old)(
                {"use_reentrant": False}
            )
        student.train().zero_grad()
        with record_features(student) as features:
            student(ids)
        sum(f.square().sum() for f in features.values()).backward()
        assert len(features) == 5
        gradients.append(
            {
                n: p.grad.clone()
                for n, p in student.named_parameters()
                if p.grad is not None
            }
        )
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_cannot_be_recorded_is_refused(teacher):
    with pytest.raises(ValueError, match="Linear has no module whose class name ends"):
        norms(nn.Linear(2, 2))
    with (
        pytest.raises(ValueError, match="one of pre_norm, post_norm, both, got 'mid'"),
        record_features(teacher, "mid"),
    ):
        pass
