import copy
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    TrainerCallback,
)

from mar_snn.distill import (
    SBDSTrainer,
    TrainingInterrupted,
    bidirectional_kl,
    feature_alignment,
)
from mar_snn.distill.data import collate
from mar_snn.distill.features import record_features

TERMS = {"forward_kl", "reverse_kl", "features"}
RATES = {
    "firing_rate",
    "firing_rate/mixer.in",
    "firing_rate/mixer.out",
    "firing_rate/mlp.in",
    "firing_rate/mlp.out",
}


def trainer(student, teacher, args, rows, **kwargs) -> SBDSTrainer:
    kwargs = {"train_dataset": rows, "data_collator": collate} | kwargs
    return SBDSTrainer(student, teacher, args, **kwargs)


def losses(trainer: SBDSTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_is_that_of_the_pure_functions(student, teacher, config, rows):
    sbds = trainer(student, teacher, config(), rows)
    batch = collate([rows[i] for i in range(3)])
    with record_features(teacher) as wanted, torch.no_grad():
        teacher_logits = teacher(batch["input_ids"]).logits
    with record_features(student) as given, torch.no_grad():
        student_logits = student(batch["input_ids"]).logits
    kl = bidirectional_kl(student_logits[:, :-1], teacher_logits[:, :-1])
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[:, -1] = False
    features = feature_alignment([*given.values()], [*wanted.values()], mask)
    loss = sbds.compute_loss(student, batch)
    torch.testing.assert_close(loss, kl.loss + 0.25 * features)


def test_training_lowers_the_loss_and_logs_every_term(student, teacher, config, rows):
    before = copy.deepcopy(teacher.state_dict())
    args = config(max_steps=20, spike_logging_steps=3, learning_rate=2e-3)
    sbds = trainer(student, teacher, args, rows)
    untrained = sbds.compute_loss(student.eval(), collate([*rows]))
    sbds.train()
    trained = sbds.compute_loss(student.eval(), collate([*rows]))
    assert trained < 0.75 * untrained
    history = [entry for entry in sbds.state.log_history if "loss" in entry]
    assert len(history) == 20
    for step, entry in enumerate(history):
        assert entry.keys() >= TERMS
        assert (entry.keys() >= RATES) == (step % 3 == 0)
        expected = 0.2 * entry["forward_kl"] + 0.7 * entry["reverse_kl"]
        expected += 0.25 * entry["features"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-4)
    assert 0 < history[0]["firing_rate"] < 1
    for name, tensor in teacher.state_dict().items():
        assert tensor.equal(before[name])


def test_the_loss_is_exactly_zero_when_the_student_is_the_teacher(
    teacher, config, rows
):
    before = copy.deepcopy(teacher.state_dict())
    sbds = trainer(teacher, teacher, config(), rows)
    assert sbds.teacher_model is not teacher
    sbds.train()
    for entry in sbds.state.log_history[:-1]:
        assert [entry[k] for k in ("loss", *sorted(TERMS))] == [0.0] * 4
    for name, tensor in teacher.state_dict().items():
        assert tensor.equal(before[name])


def gradient_after_one_step(student, teacher, args, rows, collator) -> dict:
    student = copy.deepcopy(student)
    gradients = {}

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            gradients.update({n: p.grad.clone() for n, p in student.named_parameters()})

    trainer(
        student, teacher, args, rows, data_collator=collator, callbacks=[Watch()]
    ).train()
    return gradients


def with_a_masked_start(rows: list[dict]) -> dict:
    """Rows lose as many labels as their first token says: unequal token counts."""
    batch = collate(rows)
    labels = batch["labels"].clone()
    for row in labels:
        row[: int(row[0]) % 12] = -100
    return batch | {"labels": labels}


def test_accumulated_batches_have_the_gradient_of_the_whole(
    student, teacher, config, rows
):
    options = {"max_steps": 1, "max_grad_norm": 0.0, "seed": 5}
    gradients = [
        gradient_after_one_step(
            student,
            teacher,
            config(
                per_device_train_batch_size=8 // parts,
                gradient_accumulation_steps=parts,
                **options,
            ),
            rows,
            with_a_masked_start,
        )
        for parts in (1, 2, 8)
    ]
    assert len(gradients[0]) == len(list(student.parameters()))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-7)


def test_a_fully_masked_batch_trains_nothing(student, teacher, config, rows):
    def masked(batch):
        batch = collate(batch)
        return batch | {"labels": torch.full_like(batch["labels"], -100)}

    sbds = trainer(student, teacher, config(max_steps=2), rows, data_collator=masked)
    sbds.train()
    assert losses(sbds) == [0.0, 0.0]
    assert all(p.isfinite().all() for p in student.parameters())


def test_evaluation_gives_the_same_loss(student, teacher, config, rows):
    sbds = trainer(student, teacher, config(), rows, eval_dataset=rows)
    metrics = sbds.evaluate()
    expected = sbds.compute_loss(student, collate([*rows])).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("points", ["post_norm", "both"])
def test_features_can_be_taken_elsewhere(student, teacher, config, rows, points):
    batch = collate([rows[0]])
    elsewhere = trainer(student, teacher, config(feature_points=points), rows)
    here = trainer(student, teacher, config(), rows)
    without = trainer(student, teacher, config(feature_weight=0.0), rows)
    values = [t.compute_loss(student, batch).item() for t in (elsewhere, here, without)]
    assert len(set(values)) == 3
    assert min(values) == values[2]


def test_the_temperature_reaches_the_loss(student, teacher, config, rows):
    batch = collate([rows[0]])
    warm = trainer(student, teacher, config(temperature=3.0), rows)
    cold = trainer(student, teacher, config(), rows)
    assert warm.compute_loss(student, batch) != cold.compute_loss(student, batch)


def test_thresholds_have_no_weight_decay(student, teacher, config, rows):
    sbds = trainer(student, teacher, config(weight_decay=0.1), rows)
    decayed = sbds.get_decay_parameter_names(student)
    assert not any(name.endswith("neuron.a") for name in decayed)
    assert "backbone.layers.0.mlp.up_proj.weight" in decayed


def test_the_teacher_is_evaluated_once_a_batch_without_gradients(
    student, teacher, config, rows
):
    calls = []
    sbds = trainer(student, teacher.train(), config(max_steps=3), rows)
    teacher.register_forward_hook(
        lambda m, a, out: calls.append((m.training, out.logits.requires_grad))
    )
    sbds.train()
    assert calls == [(False, False)] * 3


def test_a_teacher_is_loaded_by_name(student, teacher, config, rows, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    named = trainer(student, str(tmp_path / "teacher"), config(), rows)
    given = trainer(student, teacher, config(), rows)
    batch = collate([rows[0]])
    assert named.compute_loss(student, batch) == given.compute_loss(student, batch)


def test_a_checkpoint_holds_the_student_and_nothing_of_the_teacher(
    student, teacher, config, rows, tmp_path
):
    sbds = trainer(student, teacher, config(), rows)
    sbds.train()
    sbds.save_model(tmp_path / "saved")
    loaded = type(student).from_pretrained(tmp_path / "saved")
    assert loaded.state_dict().keys() == student.state_dict().keys()
    ids = torch.tensor([[1, 2, 3]])
    assert loaded(ids).logits.equal(student.eval()(ids).logits)


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    student, teacher, config, rows, tmp_path
):
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4.0}
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        sbds = trainer(copy.deepcopy(student), teacher, config(**options), rows)
        sbds.train(resume_from_checkpoint=resume)
        runs.append(sbds)
    entries = [
        [{k: e.get(k) for k in ("loss", *TERMS, *RATES)} for e in run.state.log_history]
        for run in runs
    ]
    assert len(entries[0]) == 10
    assert entries[0][:-1] == entries[1][:-1]
    for one, two in zip(
        runs[0].model.parameters(), runs[1].model.parameters(), strict=True
    ):
        assert one.equal(two)


@pytest.fixture
def _ctrl_c_raises() -> Iterator[None]:
    """As in a shell; a worker of pytest-xdist ignores Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class CtrlC(TrainerCallback):
    """Presses Ctrl-C while step 3 is under way, `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for _ in range(self.times):
                handler = signal.getsignal(signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                # two signals at once would be handled as one
                while signal.getsignal(signal.SIGINT) is handler:
                    time.sleep(0.01)


def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_run(
    student, teacher, config, rows, tmp_path
):
    handler = signal.getsignal(signal.SIGINT)
    whole = trainer(copy.deepcopy(student), teacher, config(max_steps=5), rows)
    whole.train()
    first = trainer(
        copy.deepcopy(student),
        teacher,
        config(max_steps=5),
        rows,
        callbacks=[CtrlC(1)],
    )
    with pytest.raises(TrainingInterrupted) as stopped:
        first.train()
    assert stopped.value.checkpoint == f"{tmp_path}/checkpoint-3"
    assert signal.getsignal(signal.SIGINT) is handler
    second = trainer(copy.deepcopy(student), teacher, config(max_steps=5), rows)
    second.train(resume_from_checkpoint=stopped.value.checkpoint)
    assert losses(second) == losses(whole)


@pytest.mark.usefixtures("_ctrl_c_raises")
def test_the_second_ctrl_c_stops_at_once(student, teacher, config, rows, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    sbds = trainer(student, teacher, config(), rows, callbacks=[CtrlC(2)])
    with pytest.raises(KeyboardInterrupt) as stopped:
        sbds.train()
    assert not isinstance(stopped.value, TrainingInterrupted)
    assert not (tmp_path / "checkpoint-3").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_launcher_that_ends_the_run_gets_a_checkpoint(
    student, teacher, config, rows, tmp_path
):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    sbds = trainer(student, teacher, config(), rows, callbacks=[Terminate()])
    with pytest.raises(TrainingInterrupted, match="checkpoint-2"):
        sbds.train()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_training_in_another_thread_leaves_signals_alone(
    student, teacher, config, rows
):
    sbds = trainer(student, teacher, config(max_steps=1), rows)
    thread = threading.Thread(target=sbds.train)
    thread.start()
    thread.join()
    assert len(losses(sbds)) == 1


def test_the_progress_bar_shows_the_terms(student, teacher, config, rows, capsys):
    trainer(student, teacher, config(disable_tqdm=False), rows).train()
    shown = capsys.readouterr().err
    assert "forward_kl=" in shown
    assert "firing_rate=" in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": -0.1}, "alpha must not be negative, got -0.1"),
        ({"temperature": 0.0}, "temperature must be above zero, got 0.0"),
        ({"feature_points": "mid"}, "feature_points must be one of pre_norm"),
        ({"feature_distance": "cos"}, "feature_distance must be one of rms"),
        ({"divergence": "cos"}, "divergence must be one of sbds, skew, jsd, got 'cos'"),
        ({"logit_loss": "cos"}, "logit_loss must be one of auto, chunked, dense, got"),
        ({"teacher_dtype": "int8"}, "teacher_dtype must be one of None, float32"),
        ({"firing_rate_target": 0.0}, "firing_rate_target must be above zero, got 0.0"),
        ({"spiking_warmup_steps": -1}, "spiking_warmup_steps must not be negative"),
    ],
)
def test_options_that_cannot_be_are_refused(config, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(**options)


def test_reentrant_checkpointing_is_refused(config, checkpointing):
    with pytest.raises(ValueError, match="reentrant gradient checkpointing gives wro"):
        config(**{f"{checkpointing}_kwargs": {"use_reentrant": True}})


def test_models_that_do_not_fit_are_refused(student, teacher, config, rows):
    other = copy.deepcopy(teacher)
    other.resize_token_embeddings(48)
    with pytest.raises(ValueError, match="scores 40 words and the teacher 48"):
        trainer(student, other, config(), rows)
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2)
    )
    with pytest.raises(ValueError, match=r"ForCausalLM has .*input_layernorm, Ma"):
        trainer(student, mamba, config(), rows)
    # without features any teacher of the same vocabulary will do
    sbds = trainer(student, mamba, config(feature_weight=0.0, max_steps=1), rows)
    sbds.train()
    assert losses(sbds)[0] > 0


def test_a_transformer_with_norms_of_the_same_names_is_a_teacher(student, config, rows):
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    sbds = trainer(student, llama, config(max_steps=1), rows)
    sbds.train()
    assert sbds.state.log_history[0]["features"] > 0


def test_rows_of_a_data_set_reach_the_model_without_other_columns(
    student, teacher, config, rows
):
    named = Dataset.from_dict(
        {"input_ids": rows["input_ids"], "name": ["x"] * len(rows)}
    )
    sbds = trainer(student, teacher, config(max_steps=1), named)
    sbds.train()
    assert len(losses(sbds)) == 1


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
    wide = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    options = {"save_strategy": "steps", "save_steps": 2.0, "max_steps": 4}
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        torch.manual_seed(7)  # the same projections to start from
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


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd", "temperature": 2.0}])
def test_without_logits_the_gradient_is_the_same(
    student, teacher, config, rows, options
):
    batch = with_a_masked_start([rows[i] for i in range(3)])
    found = []
    for how in ("dense", "chunked"):
        sbds = trainer(student, teacher, config(logit_loss=how, **options), rows)
        student.train().zero_grad()
        loss = sbds.compute_loss(student, batch)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in student.named_parameters()}
        found.append(grads | {"loss": loss.detach()})
    assert len(found[0]) > 20
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


def test_logits_are_made_where_they_are_asked_for(student, teacher, config, rows):
    args = config(logit_loss="chunked")
    sbds = trainer(student, teacher, args, rows, eval_dataset=rows)
    logits = sbds.predict(rows).predictions
    assert logits.shape == (16, 12, 40)
    loss = sbds.evaluate()["eval_loss"]
    dense = trainer(student, teacher, config(logit_loss="dense"), rows)
    expected = dense.compute_loss(student.eval(), collate([*rows])).item()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_head_that_cannot_be_read_is_refused_or_left_to_the_model(
    student, teacher, config, rows
):
    class OddHead(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) - 1

    teacher.lm_head = OddHead(16, 40)
    with pytest.raises(ValueError, match="cannot be had: the teacher's logits are not"):
        trainer(student, teacher, config(logit_loss="chunked"), rows)
    sbds = trainer(student, teacher, config(), rows)
    assert sbds.compute_loss(student, collate([rows[0]])) > 0


def test_heads_that_differ_by_padding_are_compared_on_the_words_that_exist(
    student, teacher, config, rows
):
    batch = collate([rows[0]])
    expected = trainer(student, teacher, config(), rows).compute_loss(student, batch)
    teacher.resize_token_embeddings(48)
    for how in ("dense", "chunked"):
        sbds = trainer(student, teacher, config(vocab_size=40, logit_loss=how), rows)
        torch.testing.assert_close(sbds.compute_loss(student, batch), expected)
