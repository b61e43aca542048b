"""Perplexity, and the distance of a student's projection inputs from its teacher's."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from torch import nn

from mar_snn.distill.evaluation import alignment_error, perplexity, relative_distance
from mar_snn.spiking import SITES, SpikingConfig, calibrate, spikify
from tests.distill.training import llama


@pytest.mark.usefixtures("float64")
def test_the_distance_is_relative_to_the_teacher():
    student = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0], [3.0, 0.0]])
    teacher = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    found = relative_distance(student, teacher)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.0, 0.8]))


def test_two_silent_tokens_agree_and_a_silent_teacher_is_infinitely_far():
    student = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert relative_distance(student, torch.zeros(2, 2)).tolist() == [0.0, math.inf]


def test_a_teacher_is_aligned_with_itself(teacher, rows):
    errors = alignment_error(copy.deepcopy(teacher), teacher, rows, desc=None)
    assert errors == dict.fromkeys(SITES, 0.0)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_a_slot_that_scales_its_input_is_off_by_what_it_adds(teacher, rows, factor):
    student = copy.deepcopy(teacher)
    # the last slot of the model: what is scaled there enters no other projection
    student.backbone.layers[1].mlp.out_neuron = Scaled(factor)
    errors = alignment_error(student, teacher, rows, desc=None)
    assert errors.pop("mlp.out") == pytest.approx(abs(factor - 1) / 2)  # of 2 layers
    assert errors == dict.fromkeys(errors, 0.0)


def test_every_site_sees_the_error_of_its_coders(teacher, rows):
    ids = torch.tensor(rows["input_ids"])
    for site, (owner, slot, _) in SITES.items():
        student = copy.deepcopy(teacher)
        spikify(student, SpikingConfig(sites=(site,), layers=(0,)))
        calibrate(student, [{"input_ids": ids}])
        before = {}
        coder = getattr(getattr(student.backbone.layers[0], owner), slot)
        hook = coder.register_forward_hook(
            lambda _, args, out, before=before: before.update(x=args[0], y=out)
        )
        errors = alignment_error(student, teacher, rows, batch_size=16, desc=None)
        hook.remove()
        # before the first spiking slot of the model nothing differs
        first = (before["y"] - before["x"]).norm(dim=-1) / before["x"].norm(dim=-1)
        assert errors[site] > first.mean().item() / 2 > 0


@pytest.mark.usefixtures("float64")
def test_the_batch_size_changes_no_figure_and_the_mode_comes_back(
    student, teacher, rows
):
    student.train()
    small, large = (
        alignment_error(student, teacher, rows, batch_size=size, desc=None)
        for size in (3, 16)
    )
    assert small == pytest.approx(large)
    assert all(0.01 < error < 1 for error in small.values())
    assert student.training
    assert not teacher.training
    assert perplexity(student, rows, batch_size=3, desc=None) == pytest.approx(
        perplexity(student, rows, batch_size=16, desc=None)
    )


def test_padding_is_not_evaluated(student, teacher, rows):
    """Two texts of 9 and 5 tokens, the second behind padding of other tokens."""
    ids = rows[0]["input_ids"]
    found = []
    for padding in (3, 30):
        padded = [
            {"input_ids": ids[:9], "attention_mask": [1] * 9},
            {"input_ids": [padding] * 4 + ids[:5], "attention_mask": [0] * 4 + [1] * 5},
        ]
        padded = Dataset.from_list(padded)
        errors = alignment_error(student, teacher, padded, desc=None)
        found.append((perplexity(student, padded, desc=None), errors))
    assert found[0] == found[1]
    each = [
        math.log(perplexity(student, Dataset.from_list([{"input_ids": t}]), desc=None))
        for t in (ids[:9], ids[:5])
    ]
    expected = (8 * each[0] + 4 * each[1]) / 12
    assert math.log(found[0][0]) == pytest.approx(expected, rel=1e-5)


def test_a_diverged_model_is_infinitely_perplexed(teacher, rows):
    # the logits of the words are -1e4, 0, 1e4, ...: nearly every token costs 1e4 nats
    hidden = teacher.backbone.final_layernorm
    hidden.register_forward_hook(lambda _, args, out: torch.ones_like(out))
    with torch.no_grad():
        teacher.lm_head.weight[:] = 1e4 * torch.arange(40.0)[:, None]
    assert perplexity(teacher, rows, desc=None) == math.inf
    with torch.no_grad():
        teacher.lm_head.weight[:] = math.nan
    assert math.isnan(perplexity(teacher, rows, desc=None))


def test_rows_without_a_token_to_predict_are_refused(teacher, rows):
    sentence = "rows hold no token that is predicted from one before it"
    single = Dataset.from_dict({"input_ids": [[1], [2]]})
    unlabelled = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, -100]]})
    for none in (single, unlabelled, rows.select([])):
        with pytest.raises(ValueError, match=f"{len(none)} {sentence}"):
            perplexity(teacher, none, desc=None)
    with pytest.raises(ValueError, match="0 rows hold no token to compare the models"):
        alignment_error(teacher, teacher, rows.select([]), desc=None)


def test_texts_that_a_model_cannot_keep_apart_are_not_evaluated():
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]], "seq_idx": [[0, 0, 1]]})
    with pytest.raises(
        ValueError, match="the model, a LlamaForCausalLM, would read on"
    ):
        perplexity(llama(), rows, desc=None)


def test_no_hook_stays_behind(student, teacher, rows):
    alignment_error(student, teacher, rows, desc=None)
    for model in (student, teacher):
        assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.usefixtures("float64")
def test_the_perplexity_of_a_model_without_an_opinion_is_its_vocabulary(teacher, rows):
    with torch.no_grad():
        teacher.lm_head.weight.zero_()
    assert perplexity(teacher, rows, desc=None) == pytest.approx(40.0)


def test_only_a_named_bar_is_shown(teacher, rows, capsys):
    perplexity(teacher, rows, desc=None)
    alignment_error(teacher, copy.deepcopy(teacher), rows, desc=None)
    assert capsys.readouterr().err == ""
    perplexity(teacher, Dataset.from_dict(rows[:2]), desc="Reading")
    assert "Reading" in capsys.readouterr().err


@pytest.mark.usefixtures("float64")
def test_texts_that_are_kept_apart_are_scored_one_by_one(teacher, rows):
    """Of two texts of 5 and 7 tokens in a row, the first tokens do not count."""
    ids = rows[0]["input_ids"]
    packed = {"input_ids": ids, "seq_idx": [0] * 5 + [1] * 7}
    first, second, found = (
        math.log(perplexity(teacher, Dataset.from_list([row]), desc=None))
        for row in ({"input_ids": ids[:5]}, {"input_ids": ids[5:]}, packed)
    )
    assert found == pytest.approx((4 * first + 6 * second) / 10, rel=1e-5)
