import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from mar_snn.distill.features import (
    FeatureAlignment,
    block_pairs,
    blocks,
    norm_pairs,
    record_features,
)
from mar_snn.distill.losses import feature_alignment, mean_over_layers
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from tests.distill.training import llama

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def llamba(width: int = 16, layers: int = 2) -> LlambaForCausalLM:
    config = LlambaConfig(
        vocab_size=40,
        d_model=width,
        n_layer=layers,
        mlp_cfg={"intermediate_size": 24},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.3,
    )
    return LlambaForCausalLM(config)


def run(alignment: FeatureAlignment) -> None:
    with torch.no_grad():
        alignment.teacher(IDS)
    alignment.student(IDS)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("points", ["pre_norm", "post_norm", "both"])
def test_distances_are_those_of_recorded_features(student, teacher, points):
    with record_features(student, points) as given:
        student(IDS)
    with record_features(teacher, points) as wanted, torch.no_grad():
        teacher(IDS)
    expected = feature_alignment([*given.values()], [*wanted.values()])
    expected.backward()
    wanted_gradients = gradients(student)
    student.zero_grad()
    alignment = FeatureAlignment(student, teacher, points=points)
    with alignment.attached():
        run(alignment)
        assert len(alignment.distances) == (10 if points == "both" else 5)
        loss = mean_over_layers(alignment.distances)
        loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(student), wanted_gradients)


@pytest.mark.usefixtures("float64")
def test_checkpointing_changes_no_gradient(student, teacher):
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            old = student.gradient_checkpointing_enable
            getattr(student, "activation_checkpointing_enable", old)(
                {"use_reentrant": False}
            )
        student.train().zero_grad()
        alignment = FeatureAlignment(student, teacher)
        with alignment.attached():
            run(alignment)
            mean_over_layers(alignment.distances).backward()
        found.append(gradients(student))
    assert len(found[0]) > 10
    torch.testing.assert_close(found[1], found[0])


def test_backward_saves_no_second_copy_of_the_features(student, teacher):
    """Beyond what the student's pass saves, only the teacher's features and slopes."""
    alignment = FeatureAlignment(student, teacher)
    sizes: list[list[int]] = []
    for attach in (False, True):
        seen: dict[int, torch.Tensor] = {}

        def keep(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            if attach:
                with alignment.attached():
                    run(alignment)
                    targets = {
                        t.untyped_storage().data_ptr()
                        for t in alignment._targets.values()
                    }
            else:
                student(IDS)
        own = [t for p, t in seen.items() if not attach or p not in targets]
        sizes.append(sorted(t.untyped_storage().nbytes() for t in own))
    # five slopes of eight tokens in float32 are all that is new
    assert sum(sizes[1]) - sum(sizes[0]) == 5 * 8 * 4


def test_a_student_of_fewer_blocks_follows_the_blocks_it_is_told():
    student, teacher = llamba(layers=2), llamba(layers=4)
    with pytest.raises(ValueError, match="has 2 blocks and the teacher 4: say with"):
        FeatureAlignment(student, teacher)
    with pytest.raises(ValueError, match=r"blocks 0\.\.3 of the teacher, got 1: 4$"):
        block_pairs(student, teacher, {0: 1, 1: 4})
    assert norm_pairs(student, teacher, {1: 3}) == {
        "backbone.layers.1.input_layernorm": "backbone.layers.3.input_layernorm",
        "backbone.layers.1.post_attention_layernorm": (
            "backbone.layers.3.post_attention_layernorm"
        ),
        "backbone.final_layernorm": "backbone.final_layernorm",
    }
    student.backbone.layers[1].load_state_dict(teacher.backbone.layers[3].state_dict())
    alignment = FeatureAlignment(student, teacher, layers={1: 3})
    with alignment.attached():
        run(alignment)
        assert len(alignment.distances) == 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")
def test_norms_of_a_mixer_are_left_out():
    qwen = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    pairs = norm_pairs(llamba(), qwen, {0: 0, 1: 1})
    assert set(pairs.values()) == {
        f"model.{name}"
        for name in (
            *(f"layers.{i}.input_layernorm" for i in range(2)),
            *(f"layers.{i}.post_attention_layernorm" for i in range(2)),
            "norm",
        )
    }
    # those of queries and keys see no residual stream
    back = norm_pairs(qwen, llamba(), {0: 0, 1: 1})
    assert back == {other: name for name, other in pairs.items()}
    adapted = get_peft_model(
        copy.deepcopy(qwen), LoraConfig(target_modules="all-linear")
    )
    assert len(norm_pairs(adapted, qwen, {0: 0, 1: 1})) == 5


@pytest.mark.usefixtures("float64")
def test_a_narrower_student_is_projected_to_the_width_of_its_teacher():
    student, teacher = llamba(width=16), llama(width=24)
    alignment = FeatureAlignment(student, teacher)
    assert len(alignment.projections) == 5
    with record_features(student) as given:
        student(IDS)
    with record_features(teacher) as wanted, torch.no_grad():
        teacher(IDS)
    projected = [
        alignment.projections[name.removesuffix(".input")](feature)
        for name, feature in given.items()
    ]
    with alignment.attached():
        run(alignment)
        loss = mean_over_layers(alignment.distances)
    torch.testing.assert_close(loss, feature_alignment(projected, [*wanted.values()]))
    loss.backward()
    assert all(p.weight.grad.abs().sum() > 0 for p in alignment.projections.values())


def test_blocks_are_outermost():
    assert list(blocks(llamba())) == ["backbone.layers.0", "backbone.layers.1"]
    assert list(blocks(llama())) == ["model.layers.0", "model.layers.1"]
    assert blocks(nn.Linear(2, 2)) == {}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_forced_block_learns_from_the_teachers_input_alone(
    student, teacher, checkpointing
):
    """Block 1 reads the teacher's residual stream; its own input is compared, too."""
    if checkpointing:
        old = student.gradient_checkpointing_enable
        getattr(student, "activation_checkpointing_enable", old)(
            {"use_reentrant": False}
        )
    student.train()
    alignment = FeatureAlignment(student, teacher)
    alignment.teacher_forcing = True
    with record_features(teacher) as wanted, torch.no_grad():
        teacher(IDS)
    first, second = student.backbone.layers
    own = copy.deepcopy(student)
    stream = wanted["backbone.layers.1.input_layernorm.input"]
    with record_features(own) as given:
        entering = own.backbone.layers[0](own.backbone.embedding(IDS))
        leaving = own.backbone.layers[1](stream)
        own.backbone.final_layernorm(leaving)
    given = dict(given) | {"backbone.layers.1.input_layernorm.input": entering}
    expected = feature_alignment([given[k] for k in wanted], [*wanted.values()])
    expected.backward()
    with alignment.attached():
        run(alignment)
        loss = mean_over_layers(alignment.distances)
        loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(first), gradients(own.backbone.layers[0]))
    torch.testing.assert_close(gradients(second), gradients(own.backbone.layers[1]))


def test_nothing_is_kept_and_no_hook_outlives_the_block(student, teacher):
    alignment = FeatureAlignment(student, teacher)
    with alignment.attached():
        run(alignment)
    with pytest.raises(RuntimeError, match="no norm of the student was reached"):
        _ = alignment.distances
    run(alignment)
    assert alignment._targets == alignment._distances == {}
