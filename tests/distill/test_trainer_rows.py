"""The rows that a trainer is given: boundaries, labels, padding, and bad ones."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import DataParallel
from transformers import DataCollatorWithFlattening, default_data_collator

from mar_snn.distill import SBDSTrainer
from mar_snn.distill.data import collate
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import spikify
from tests.distill.training import llama, trainer

IDS = [[1, 2, 3, 4], [5, 6, 7, 8]]
TEXTS = [[0, 0, 1, 1], [0, 0, 0, 0]]


def apart() -> Dataset:
    return Dataset.from_dict({"input_ids": IDS, "seq_idx": TEXTS})


class Stream(torch.utils.data.IterableDataset):
    """A stream whose columns nobody knows before it is read."""

    def __iter__(self):
        yield from apart()


#: The kinds of data sets that the trainer takes.
KINDS = {
    "data set": apart,
    "list": lambda: list(apart()),
    "stream": lambda: apart().to_iterable_dataset(),
    "stream of unknown columns": lambda: apart().to_iterable_dataset().map(dict),
    "stream of PyTorch": Stream,
}


# ---- boundaries


@pytest.mark.parametrize("remove", [True, False])
def test_texts_that_a_model_cannot_keep_apart_are_refused_at_once(
    student, teacher, config, rows, remove
):
    sentence = "and the {}, a LlamaForCausalLM, would read on from one to the next"
    args = config(logit_loss="dense", remove_unused_columns=remove)
    other, spiking = llama(), spikify(llama())
    for make in KINDS.values():
        with pytest.raises(ValueError, match=sentence.format("teacher")):
            trainer(student, other, args, make())
        with pytest.raises(ValueError, match=sentence.format("student")):
            trainer(spiking, teacher, args, make())
        with pytest.raises(ValueError, match=sentence.format("teacher")):
            trainer(student, other, args, rows, eval_dataset={"a": rows, "b": make()})
    # a data set that comes later is met with its column
    with pytest.raises(ValueError, match=sentence.format("teacher")):
        trainer(student, other, args, rows).evaluate(apart())


def test_texts_that_both_models_keep_apart_train(student, teacher, config):
    for make in (apart, Stream):
        trainer(student, teacher, config(max_steps=1), make()).train()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkp:FutureWarning")
def test_an_adapter_does_not_hide_what_a_student_takes(student, teacher, config):
    lora = LoraConfig(target_modules=["gate_proj"])
    adapted = get_peft_model(student, lora)
    sbds = trainer(adapted, teacher, config(max_steps=1, logit_loss="chunked"), apart())
    sbds.train()
    assert sbds.state.log_history[0]["loss"] > 0
    adapted = get_peft_model(spikify(llama()), lora)
    with pytest.raises(ValueError, match="the student, a PeftModel, would read on"):
        trainer(adapted, llama(), config(), apart())


def test_a_collator_that_joins_rows_says_where_they_begin(
    student, teacher, config, rows
):
    flat, args = DataCollatorWithFlattening(), config(max_steps=1)
    with pytest.raises(ValueError, match="apart by position_ids, and the student, a L"):
        trainer(student, teacher, args, rows, data_collator=flat)
    # what attention alone reads is kept apart by its positions
    trainer(spikify(llama()), llama(), args, rows, data_collator=flat).train()
    numbered = DataCollatorWithFlattening(return_seq_idx=True)
    trainer(student, teacher, args, rows, data_collator=numbered).train()


def test_a_stream_that_can_be_read_once_is_left_whole(student, config):
    once = iter(apart())

    class Once(torch.utils.data.IterableDataset):
        def __iter__(self):
            return once

    sbds = trainer(student, llama(), config(max_steps=1), Once())
    with pytest.raises(ValueError, match="would read on from one to the next"):
        sbds.train()
    assert len(list(once)) == 0


# ---- labels


def test_prompts_and_padding_count_in_no_term(student, teacher, config):
    """A row padded on the left is its text alone, label by label."""
    prompt, answer = [3, 4, 5], [6, 7, 8, 9]
    text = {"input_ids": prompt + answer, "labels": [-100] * 3 + answer}
    padded = {
        "input_ids": [0, 0, *prompt, *answer],
        "attention_mask": [0, 0] + [1] * 7,
        # what a collator makes that knows of padding, but not of what stands before it
        "labels": [-100, -100, *prompt, *answer],
    }
    sbds = trainer(student, teacher, config(feature_points="both"), [text])
    # the first label is of token 3, which the logits and features of token 2 predict
    ids = {"input_ids": torch.tensor([prompt + answer])}
    labels = torch.tensor([[-100, -100, *answer, -100]])
    with sbds.objective.attached():
        expected = sbds.objective(student, ids, labels, torch.tensor(4)).loss
    torch.testing.assert_close(sbds.compute_loss(student, collate([text])), expected)
    whole = sbds.compute_loss(student, collate([{"input_ids": prompt + answer}]))
    torch.testing.assert_close(sbds.compute_loss(student, collate([padded])), whole)


def test_labels_that_cannot_be_predicted_are_not_counted_in_a_step(
    student, teacher, config
):
    """Rows of 5 and 2 tokens in two batches of one: the mean of 4 + 1 predictions."""
    rows = [
        {"input_ids": [1, 2, 3, 4, 5], "attention_mask": [1] * 5},
        {"input_ids": [0, 0, 0, 6, 7], "attention_mask": [0, 0, 0, 1, 1]},
    ]

    def as_others_do(batch):
        batch = collate(batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return batch | {"labels": ids.masked_fill(mask == 0, -100)}

    args = config(
        max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    sbds = trainer(student, teacher, args, rows, data_collator=as_others_do)
    parts = [sbds.compute_loss(student, as_others_do([row])).item() for row in rows]
    sbds.train()
    expected = (4 * parts[0] + 1 * parts[1]) / 5
    assert sbds.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_vocabulary_of_two_words_is_enough(config):
    sizes = {"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2}
    teacher = LlambaForCausalLM(
        LlambaConfig(
            vocab_size=2,
            d_model=16,
            n_layer=1,
            mlp_cfg={"intermediate_size": 24},
            ssm_cfg=sizes,
            pad_vocab_size_multiple=1,
        )
    )
    rows = [{"input_ids": [0, 1, 1, 0]}]
    student = spikify(copy.deepcopy(teacher))
    for how in ("dense", "chunked"):
        sbds = trainer(student, teacher, config(max_steps=1, logit_loss=how), rows)
        sbds.train()
        assert 0 < sbds.state.log_history[0]["loss"] < math.inf


# ---- what cannot be


def test_without_a_collator_every_token_is_a_label(student, teacher, config, rows):
    plain = SBDSTrainer(student, teacher, config(max_steps=1), train_dataset=rows)
    assert plain.data_collator is collate
    plain.train()
    assert plain.state.log_history[0]["loss"] > 0


def test_batches_without_labels_and_data_sets_without_rows_are_refused(
    student, teacher, config, rows
):
    sbds = trainer(
        student, teacher, config(), rows, data_collator=default_data_collator
    )
    with pytest.raises(ValueError, match="a batch has no labels, only input_ids: the"):
        sbds.train()
    for data in ({"train_dataset": rows.select([])}, {"eval_dataset": []}):
        with pytest.raises(ValueError, match="to train or evaluate on holds no row"):
            trainer(student, teacher, config(), rows, **data)


def test_what_the_trainer_cannot_obey_is_refused(student, teacher, config, rows):
    with pytest.raises(ValueError, match="args must be an SBDSConfig, got NoneType"):
        trainer(student, teacher, None, rows)
    with pytest.raises(ValueError, match="model_init cannot be used with SBDSTrainer:"):
        trainer(None, teacher, config(), rows, model_init=lambda: student)
    with pytest.raises(ValueError, match="compute_loss_func cannot be used with SBDST"):
        trainer(student, teacher, config(), rows, compute_loss_func=lambda *_: 0)
    with pytest.raises(ValueError, match=r"DataParallel around a Llamba.*its \.module"):
        trainer(DataParallel(student), teacher, config(), rows)
    with pytest.raises(ValueError, match="the teacher must be a causal language model"):
        trainer(student, teacher.backbone, config(), rows)
    dense = copy.deepcopy(teacher)
    with pytest.raises(ValueError, match="firing_rate_target of a student without cod"):
        trainer(dense, teacher, config(firing_rate_target=0.1), rows)
    args = config(threshold_learning_rate=0.1)
    optimizer = torch.optim.SGD(student.parameters())
    with pytest.raises(ValueError, match="for the optimizer that the trainer makes"):
        trainer(student, teacher, args, rows, optimizers=(optimizer, None))
