"""Rows of equal length, with and without boundaries, of data sets and of streams."""

from itertools import islice, pairwise

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from mar_snn.distill.data import PackedStream, collate, pack
from tests.distill.letters import Letters

pytestmark = pytest.mark.usefixtures("away_from_home")


def texts(*values: str) -> Dataset:
    return Dataset.from_dict({"text": list(values)})


def stream(*values: str, shards: int = 1, **options) -> PackedStream:
    options = {"length": 4} | options
    source = texts(*values).to_iterable_dataset(num_shards=shards)
    return PackedStream(source, Letters(), **options)


def test_texts_are_joined_with_an_end_and_cut_into_rows():
    rows = pack(texts("abc", "de", "f"), Letters(), 4)
    # 1 2 3 0 | 4 5 0 6 | 0: the last row is not full
    assert rows["input_ids"] == [[1, 2, 3, 0], [4, 5, 0, 6]]
    assert rows.column_names == ["input_ids"]


def test_too_little_text_for_one_row_is_refused():
    with pytest.raises(ValueError, match="2 texts do not fill one row of 9 tokens"):
        pack(texts("abc", "de"), Letters(), 9)


def test_a_batch_has_its_inputs_for_labels():
    batch = collate([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1, 2], [3, 4]]


def test_a_tokenizer_without_an_end_of_text_is_refused():
    endless = Letters()
    endless.eos_token_id = None
    with pytest.raises(ValueError, match="tokenizer has no end-of-text token to write"):
        pack(texts("abc", "de"), endless, 4)
    with pytest.raises(ValueError, match="tokenizer has no end-of-text token to write"):
        next(iter(PackedStream(texts("a").to_iterable_dataset(), endless, 4)))


def test_labels_of_a_row_are_kept_and_texts_and_padding_lose_theirs():
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]},
    ]
    assert collate(rows)["labels"].tolist() == [[-100, -100, 3, 4], [5, 6, 7, 8]]
    apart = [row | {"seq_idx": [0, 1, 1, 2]} for row in rows]
    labels = [[-100, -100, 3, -100], [5, -100, 7, -100]]
    assert collate(apart)["labels"].tolist() == labels
    masks = [[0, 0, 1, 1], [1, 1, 1, 0]]
    padded = [r | {"attention_mask": m} for r, m in zip(rows, masks, strict=True)]
    batch = collate(padded)
    assert batch["attention_mask"].tolist() == masks
    # nothing but padding comes before token 3
    labels = [[-100, -100, -100, 4], [5, 6, 7, -100]]
    assert batch["labels"].tolist() == labels
    # columns of tensors, and those without a value
    tensors = [{"input_ids": torch.tensor([1, 2]), "labels": None}]
    assert collate(tensors)["labels"].tolist() == [[1, 2]]


def test_rows_that_make_no_batch_are_refused():
    one = {"input_ids": [1, 2]}
    with pytest.raises(ValueError, match="be of one length, got 2, 3: pack them"):
        collate([one, {"input_ids": [1, 2, 3]}])
    with pytest.raises(
        ValueError, match="row 1 of a batch has no labels, only input_i"
    ):
        collate([one | {"labels": [1, 2]}, one])
    with pytest.raises(
        ValueError, match="row 0 of a batch has no input_ids, only text"
    ):
        collate([{"text": "a"}])


def test_an_end_that_the_text_has_already_is_not_doubled():
    # "`" is the letter before "a": token 0
    rows = pack(texts("ab`", "c"), Letters(), 5)
    assert rows["input_ids"] == [[1, 2, 0, 3, 0]]


def test_boundaries_number_the_texts_of_a_row_from_zero():
    rows = pack(texts("abc", "de", "f", "ghij"), Letters(), 4, boundaries=True)
    # 1 2 3 0 | 4 5 0 6 | 0 7 8 9 | 10 0: the second row holds two texts and so on
    assert rows["input_ids"] == [[1, 2, 3, 0], [4, 5, 0, 6], [0, 7, 8, 9]]
    assert rows["seq_idx"] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]]


def test_the_first_token_of_a_text_has_no_label():
    rows = pack(texts("a", "bcd", "", "e"), Letters(), 9, boundaries=True)
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[1, 0, 2, 3, 4, 0, 0, 5, 0]]
    assert batch["seq_idx"].tolist() == [[0, 0, 1, 1, 1, 1, 2, 3, 3]]
    assert batch["labels"].tolist() == [[1, 0, -100, 3, 4, 0, -100, -100, 0]]


@pytest.mark.usefixtures("float64")
def test_a_packed_batch_keeps_the_texts_apart_in_the_model(teacher):
    rows = pack(texts("abcdefg", "hi", "jklmnopqrs"), Letters(), 20, boundaries=True)
    batch = collate(rows)
    logits = teacher(**batch, use_cache=False).logits
    alone = teacher(batch["input_ids"][:, 8:11], use_cache=False).logits
    torch.testing.assert_close(logits[:, 8:11], alone)


def test_a_stream_drops_no_token_between_its_texts_nor_its_epochs():
    rows = stream("abc", "de", "f", epochs=2)
    # 1 2 3 0 | 4 5 0 6 | 0 + 1 2 3 | 0 4 5 0 | 6 0: only what is left at the end
    assert [row["input_ids"] for row in rows] == [
        [1, 2, 3, 0],
        [4, 5, 0, 6],
        [0, 1, 2, 3],
        [0, 4, 5, 0],
    ]


def test_a_stream_carries_the_boundary_over_to_the_next_row():
    values = ["abcdefgh", *("ij" for _ in range(250))]
    rows = list(stream(*values, length=7, boundaries=True, epochs=1))
    ids = [i for row in rows for i in row["input_ids"]]
    assert ids[:15] == [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 10, 0, 9, 10, 0]
    assert len(rows) == (9 + 3 * 250) // 7
    assert rows[0]["seq_idx"] == [0] * 7
    assert rows[1]["seq_idx"] == [0, 0, 1, 1, 1, 2, 2]
    for row in rows[2:]:
        changes = [b - a for a, b in pairwise(row["seq_idx"])]
        ends = [i == 0 for i in row["input_ids"][:-1]]
        assert changes == [int(end) for end in ends]


def test_a_stream_goes_on_for_ever_and_starts_the_same_every_time():
    rows = stream("abc", "de")
    first, second = ([*islice(rows, 30)] for _ in range(2))
    assert first == second
    assert len(first) == 30


def test_an_epoch_has_its_own_order():
    values = [letter * 3 for letter in "abcdefghijklmnopqrst"]
    source = texts(*values).to_iterable_dataset().shuffle(seed=3, buffer_size=20)
    rows = [r["input_ids"][0] for r in PackedStream(source, Letters(), 4, epochs=2)]
    assert sorted(rows[:20]) == sorted(rows[20:]) == list(range(1, 21))
    assert len({tuple(rows[:20]), tuple(rows[20:]), tuple(range(1, 21))}) == 3


def test_a_stream_without_text_is_refused_instead_of_waited_for():
    with pytest.raises(ValueError, match="the stream holds no text"):
        next(iter(PackedStream(texts("a").to_iterable_dataset().skip(1), Letters(), 4)))


def test_workers_read_shards_of_their_own():
    values = [letter * 3 for letter in "abcdefgh"]
    rows = stream(*values, shards=4, epochs=1)
    loader = DataLoader(rows, batch_size=None, num_workers=2)
    # worker 0 has shards 0 and 2, worker 1 has 1 and 3; they take turns
    firsts = [int(row["input_ids"][0]) for row in loader]
    assert firsts == [1, 3, 2, 4, 5, 7, 6, 8]


def test_more_workers_than_shards_are_refused():
    loader = DataLoader(stream("abc", "de"), batch_size=None, num_workers=2)
    with pytest.raises(ValueError, match="no text for worker 2 of 2: it has 1 shards"):
        list(loader)


def test_the_first_rows_of_a_stream_are_a_data_set():
    rows = stream("abc", "de", "f", epochs=1)
    assert rows.take(1)["input_ids"] == [[1, 2, 3, 0]]
    assert len(rows.take(9)) == 2
    with pytest.raises(ValueError, match="does not fill one row of 9 tokens"):
        stream("abc", "de", length=9, epochs=1).take(3)
