"""The trainer: its loss, its gradients, what it logs, saves and refuses."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    TrainerCallback,
)

from mar_snn.distill import (
    bidirectional_kl,
    feature_alignment,
)
from mar_snn.distill.data import collate
from mar_snn.distill.features import record_features
from tests.distill.training import (
    RATES,
    TERMS,
    llama,
    losses,
    trainer,
    with_a_masked_start,
)


@pytest.mark.usefixtures("float64")
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


@pytest.mark.usefixtures("float64")
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


@pytest.mark.usefixtures("float64")
def test_accumulated_batches_have_the_gradient_of_the_whole(
    student, teacher, config, rows
):
    student.double()  # thresholds, too
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
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-10)


def test_a_fully_masked_batch_trains_nothing(student, teacher, config, rows):
    def masked(batch):
        batch = collate(batch)
        return batch | {"labels": torch.full_like(batch["labels"], -100)}

    sbds = trainer(student, teacher, config(max_steps=2), rows, data_collator=masked)
    sbds.train()
    assert losses(sbds) == [0.0, 0.0]
    assert all(p.isfinite().all() for p in student.parameters())


@pytest.mark.usefixtures("float64")
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
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no part in SBDS"),
        ({"use_liger_kernel": True}, "its modules go around the coders: leave it out"),
        ({"use_cache": True}, "use_cache has no part in SBDS, since rows are read at"),
        ({"label_names": ["x"]}, r"label_names must have 'labels', .* got \['x'\]"),
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
    other = llama()
    sbds = trainer(student, other, config(max_steps=1), rows)
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
