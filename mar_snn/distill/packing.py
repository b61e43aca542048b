"""Rows of equal length out of texts, and batches of them."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import torch
from datasets import Dataset
from datasets import IterableDataset as TextStream
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

__all__ = ["PackedStream", "collate", "counted_labels", "pack"]

Row = dict[str, list[int]]

#: Texts of a stream that are tokenized at once.
_BATCH = 100


def pack(
    texts: Dataset,
    tokenizer: Any,
    length: int,
    *,
    column: str = "text",
    boundaries: bool = False,
) -> Dataset:
    """Rows of `input_ids` of exactly `length` tokens, an end-of-text after each text.

    Texts are joined in their order and cut; the rest of each thousand of texts, shorter
    than `length`, is dropped.

    Args:
        texts: a data set; `PackedStream` does the same for a stream.
        tokenizer: of transformers.
        length: tokens of a row.
        column: name of the column that holds the text.
        boundaries: whether to write `seq_idx` too, the number of the text in its row
            that a token belongs to, from 0: Llamba then keeps the texts apart, and
            `collate` has no text predict the next one's first token.

    Raises:
        ValueError: where the texts do not fill one row, or the tokenizer has no
            end-of-text token.
    """

    def cut(batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        joined = _Joined(tokenizer)
        joined.add(batch[column])
        rows = list(joined.cut(length, boundaries=boundaries))
        names = ("input_ids", "seq_idx") if boundaries else ("input_ids",)
        return {name: [row[name] for row in rows] for name in names}

    packed = texts.map(
        cut, batched=True, remove_columns=texts.column_names, desc="Packing"
    )
    if not len(packed):
        raise ValueError(
            f"{len(texts)} texts do not fill one row of {length} tokens; give more "
            "text or a smaller --max_length"
        )
    return packed


class PackedStream(IterableDataset[Row]):
    """The rows of `pack` out of a stream of texts, without dropping any token.

    The stream is read again, in its next epoch's order, when it ends, so that a run
    that is resumed by skipping batches meets the same rows whenever it was stopped.
    Each worker of a DataLoader packs its own shards of the stream.

    Args:
        texts: a stream of `datasets` with a column `text`.
        tokenizer: of transformers.
        length: tokens of a row.
        boundaries: see `pack`.
        epochs: how often to read the stream; None: for ever. What is left behind the
            last full row is dropped.

    Raises:
        ValueError: while reading, where a worker has no text to read, or the tokenizer
            has no end-of-text token.
    """

    def __init__(
        self,
        texts: TextStream,
        tokenizer: Any,
        length: int,
        *,
        boundaries: bool = False,
        epochs: int | None = None,
    ) -> None:
        self.texts, self.tokenizer = texts, tokenizer
        self.length, self.boundaries, self.epochs = length, boundaries, epochs

    def __iter__(self) -> Iterator[Row]:
        # workers share the number of the epoch of one stream, but not of its copies
        texts = copy.deepcopy(self.texts)
        joined = _Joined(self.tokenizer)
        for epoch in count() if self.epochs is None else range(self.epochs):
            texts.set_epoch(epoch)
            stream = iter(texts)
            found = False
            while batch := [row["text"] for row in islice(stream, _BATCH)]:
                found = True
                joined.add(batch)
                yield from joined.cut(self.length, boundaries=self.boundaries)
            if not found:
                worker = get_worker_info()
                raise ValueError(
                    "the stream holds no text"
                    if worker is None
                    else f"the stream has no text for worker {worker.id + 1} of "
                    f"{worker.num_workers}: it has {texts.num_shards} shards; use at "
                    "most as many workers, or load the text with more shards"
                )

    def take(self, count: int) -> Dataset:
        """The first `count` rows, or as many as there are, as a data set.

        Raises:
            ValueError: where there is none.
        """
        rows = list(islice(self, count))
        if not rows:
            raise ValueError(
                f"the stream does not fill one row of {self.length} tokens; give more "
                "text or a smaller --max_length"
            )
        return Dataset.from_list(rows)


class _Joined:
    """Tokens of texts that are not yet in a row, and the number of each one's text."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token to write behind each text: set "
                "its eos_token to one that the model knows"
            )
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.numbers: list[int] = []

    def add(self, texts: Sequence[str]) -> None:
        # the tokenizer warns of texts longer than the model: they are cut right here
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        first = self.numbers[-1] + 1 if self.numbers else 0
        end = self.tokenizer.eos_token_id
        for number, ids in enumerate(encoded["input_ids"], first):
            self.ids += ids
            if not ids or ids[-1] != end:  # a chat template may have written it
                self.ids.append(end)
            self.numbers += [number] * (len(self.ids) - len(self.numbers))

    def cut(self, length: int, *, boundaries: bool) -> Iterator[Row]:
        """Take the full rows off."""
        full = len(self.ids) - len(self.ids) % length
        for start in range(0, full, length):
            here = slice(start, start + length)
            row = {"input_ids": self.ids[here]}
            if boundaries:
                first = self.numbers[start]
                row["seq_idx"] = [number - first for number in self.numbers[here]]
            yield row
        del self.ids[:full], self.numbers[:full]


#: What `collate` takes of a row.
_COLUMNS = ("input_ids", "labels", "attention_mask", "seq_idx")


def collate(rows: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows of one length: `input_ids` and `labels`; models shift.

    Labels that rows bring are kept, -100 for what is not trained on; otherwise every
    token is its own label. So are `attention_mask` and `seq_idx`, whose padding and
    first tokens of further texts have the label -100: see `counted_labels`.

    Raises:
        ValueError: where the rows have different columns or lengths, or no tokens.
    """
    rows = list(rows)
    names = [n for n in _COLUMNS if any(row.get(n) is not None for row in rows)]
    for number, row in enumerate(rows):
        missing = [n for n in names or _COLUMNS[:1] if row.get(n) is None]
        if "input_ids" not in names or missing:
            raise ValueError(
                f"row {number} of a batch has no {' or '.join(missing)}, only "
                f"{', '.join(row) or 'nothing'}: rows need input_ids, such as those of "
                "mar_snn.distill.data.pack, and all of them the same columns"
            )
    lengths = {len(row[name]) for row in rows for name in names}
    if len(lengths) > 1:
        raise ValueError(
            "the rows of a batch and their columns must be of one length, got "
            f"{', '.join(map(str, sorted(lengths)))}: pack them "
            "(mar_snn.distill.data.pack), or pad them, with attention_mask 0 there"
        )
    batch = {n: torch.stack([torch.as_tensor(row[n]) for row in rows]) for n in names}
    batch.setdefault("labels", batch["input_ids"])
    return batch | {"labels": counted_labels(batch)}


def counted_labels(batch: Mapping[str, Tensor]) -> Int[Tensor, "batch length"]:
    """The labels of a batch, -100 where no token of the same text comes before.

    These are padding, the first token behind it, and, where `seq_idx` changes, the
    first token of each further text.
    """
    labels = batch["labels"]
    for name in ("seq_idx", "attention_mask"):
        numbers = batch.get(name)
        # a mask for each pair of tokens does not say which of them are padding
        if numbers is None or numbers.shape != labels.shape:
            continue
        uncounted = numbers.diff(dim=1, prepend=numbers[:, :1]) != 0
        if name == "attention_mask":
            uncounted |= numbers == 0
        labels = labels.masked_fill(uncounted, -100)
    return labels
