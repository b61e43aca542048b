"""What SBDSConfig can switch on."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from mar_snn.distill.data import collate
from tests.distill.training import RATES, TERMS, llama, losses, trainer
from tests.seed import SEED


@pytest.mark.usefixtures("float64")
def test_thresholds_learn_at_their_own_rate(student, teacher, config, rows):
    args = config(threshold_learning_rate=0.5, weight_decay=0.1, max_steps=3)
    sbds = trainer(student, teacher, args, rows)
    sbds.train()
    named = {id(p): name for name, p in student.named_parameters()}
    groups = sbds.optimizer.param_groups
    assert len(groups) == 3
    learned = [[named[id(p)] for p in group["params"]] for group in groups]
    assert sorted([*learned[0], *learned[1], *learned[2]]) == sorted(named.values())
    assert learned[2] == [name for name in named.values() if name.endswith("neuron.a")]
    assert groups[2]["initial_lr"] == 0.5
    assert groups[2]["weight_decay"] == 0.0
    assert [g["initial_lr"] for g in groups[:2]] == [1e-2, 1e-2]
    # the schedule is one for all
    assert groups[2]["lr"] / 0.5 == pytest.approx(groups[0]["lr"] / 1e-2)


@pytest.mark.usefixtures("float64")
def test_a_firing_rate_target_is_a_term_of_the_loss(student, teacher, config, rows):
    args = config(
        max_steps=15,
        firing_rate_target=0.05,
        firing_rate_weight=40.0,
        threshold_learning_rate=0.1,
        spike_logging_steps=1,
        feature_weight=0.0,
    )
    sbds = trainer(student, teacher, args, rows)
    sbds.train()
    first, *_, last, _ = sbds.state.log_history
    expected = 0.2 * first["forward_kl"] + 0.7 * first["reverse_kl"]
    expected += 40 * first["firing"]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    # a token's squared distance is no smaller than that of the mean
    assert first["firing"] >= (first["firing_rate"] - 0.05) ** 2
    assert last["firing_rate"] < 0.8 * first["firing_rate"]


def test_sites_start_to_spike_during_the_first_steps(student, teacher, config, rows):
    args = config(max_steps=5, spiking_warmup_steps=3, learning_rate=0.0)
    same = rows.select([0] * 20)
    sbds = trainer(student, teacher, args, same)
    sbds.train()
    history = [entry for entry in sbds.state.log_history if "loss" in entry]
    assert [e["spiking_sites"] for e in history] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # nothing is learnt, so the student moves away from its teacher and stays there
    features = [entry["features"] for entry in history]
    assert features[0] < features[1] < features[2] < features[3] == features[4]


def test_teacher_forcing_ends_after_its_steps(student, teacher, config, rows):
    args = config(max_steps=4, teacher_forcing_steps=2, learning_rate=0.0, seed=1)
    forced = trainer(student, teacher, args, rows)
    forced.train()
    free = trainer(
        student, teacher, config(max_steps=4, learning_rate=0.0, seed=1), rows
    )
    free.train()
    for step, (a, b) in enumerate(zip(losses(forced), losses(free), strict=True)):
        assert (a == b) == (step >= 2)
    # errors of the blocks below do not reach a forced block
    assert losses(forced)[0] < losses(free)[0]


def test_teacher_forcing_needs_features_before_the_norms(config):
    with pytest.raises(ValueError, match="set feature_points='pre_norm', got 'both'"):
        config(teacher_forcing_steps=1, feature_points="both")


@pytest.mark.usefixtures("float64")
def test_checkpointed_training_is_the_same_training(
    student, teacher, config, rows, checkpointing
):
    runs = []
    for checkpointed in (False, True):
        args = config(
            **{
                checkpointing: checkpointed,
                "teacher_forcing_steps": 1,
                "firing_rate_target": 0.1,
            }
        )
        sbds = trainer(copy.deepcopy(student), teacher, args, rows)
        sbds.train()
        runs.append(losses(sbds))
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)


def test_layers_are_mapped_from_the_command_line(student, teacher, config, rows):
    one_layer = config(feature_layers='{"0": 1}')
    assert one_layer.feature_layers == {0: 1}
    batch = collate([rows[0]])
    mapped = trainer(student, teacher, one_layer, rows)
    straight = trainer(student, teacher, config(), rows)
    assert mapped.compute_loss(student, batch) > straight.compute_loss(student, batch)


def test_projections_are_trained_resumed_and_never_saved_in_the_model(
    student, config, rows, tmp_path
):
    wide = llama(width=24)
    options = {"save_strategy": "steps", "save_steps": 2.0, "max_steps": 4}
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        torch.manual_seed(SEED)  # the same projections to start from
        sbds = trainer(copy.deepcopy(student), wide, config(**options), rows)
        before = [
            p.weight.clone() for p in sbds.objective.alignment.projections.values()
        ]
        sbds.train(resume_from_checkpoint=resume)
        runs.append(sbds)
    assert losses(runs[1]) == losses(runs[0])
    for old, new in zip(
        before, runs[0].objective.alignment.projections.values(), strict=True
    ):
        assert not old.equal(new.weight)
    saved = type(student).from_pretrained(tmp_path / "checkpoint-4")
    assert saved.state_dict().keys() == student.state_dict().keys()
    assert runs[0].model.state_dict().keys() == student.state_dict().keys()
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert not any("projection" in name for name in stored)


def test_tensorboard_gets_every_term(student, teacher, config, rows, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = config(report_to="tensorboard", spike_logging_steps=1)
    trainer(student, teacher, args, rows).train()
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents*")).parent))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    wanted = {f"train/{name}" for name in (*TERMS, *RATES, "threshold/mlp.in")}
    assert scalars >= wanted
    assert len(events.Scalars("train/forward_kl")) == 4
