"""Text for training: from a data set, a file, a folder, or Python's own library."""

import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from torch import Tensor

__all__ = ["collate", "load_text", "pack", "standard_library_text"]

#: Parts of the standard library that some distributions leave out or that are tables.
_SKIPPED = {
    "__pycache__",
    "dist-packages",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}
#: One document in this many is held out.
_HELD_OUT_ONE_IN = 20
#: Share of a data set without a test split that is held out.
_HELD_OUT_SHARE = 0.05
_FORMATS = {".json": "json", ".jsonl": "json", ".txt": "text"}
_HELD_OUT_SPLITS = ("validation", "test", "eval", "heldout")


def standard_library_text() -> DatasetDict:
    """The sources and help topics of this Python: splits "train" and "heldout".

    Columns `name` and `text`. A document is held out by the checksum of its name, so
    another version of Python holds out the same files.
    """
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for name, text in sorted(chain(_library_sources(), _help_topics())):
        held_out = zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0
        rows["heldout" if held_out else "train"].append({"name": name, "text": text})
    return DatasetDict({split: Dataset.from_list(docs) for split, docs in rows.items()})


def _library_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        generated = name.name.startswith("_sysconfigdata")
        if not generated and _SKIPPED.isdisjoint(name.parts):
            yield name.as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _help_topics() -> Iterator[tuple[str, str]]:
    for topic, text in topics.items():
        yield f"pydoc_data/topics/{topic}", text


def load_text(source: str, column: str, *, seed: int = 0) -> DatasetDict:
    """Splits "train" and "heldout" of a data set of texts.

    Args:
        source: a JSON-lines or text file (also gzipped), a folder (of text files, or
            written by `datasets`' save_to_disk), or the name of a data set on the
            Hugging Face hub.
        column: name of the column that holds the text.
        seed: of the split, where the data set has no validation or test split.

    Raises:
        ValueError: where the file has another format, the column is missing, or there
            are fewer than two texts.
    """
    splits = _load(source)
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    if column not in train.column_names:
        raise ValueError(
            f"{source} has no column {column!r}: it has "
            f"{', '.join(train.column_names) or 'none'}; name one with --text_column"
        )
    train = train.filter(lambda row: bool(row[column]), desc="Dropping empty texts")
    if len(train) < 2:
        raise ValueError(f"{source} holds {len(train)} texts; at least 2 are needed")
    for name in _HELD_OUT_SPLITS:
        if name in splits and len(splits[name]):
            return DatasetDict(train=train, heldout=splits[name])
    held_out = max(1, round(len(train) * _HELD_OUT_SHARE))
    parts = train.train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(train=parts["train"], heldout=parts["test"])


def _load(source: str) -> DatasetDict:
    path = Path(source)
    if path.is_file():
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if suffix not in _FORMATS:
            raise ValueError(
                f"--train_data must end in {', '.join(_FORMATS)} (or .gz after it), "
                f"got {path.name}"
            )
        try:
            return load_dataset(_FORMATS[suffix], data_files=str(path))
        except (DatasetsError, StopIteration) as error:  # the latter: an empty file
            raise ValueError(f"{source} holds no {suffix} data {error}") from error
    if path.is_dir():
        saved = load_from_disk(source) if _is_saved(path) else load_dataset(source)
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    if path.suffix in {*_FORMATS, ".gz"} or path.is_absolute():
        raise ValueError(f"--train_data names a file that does not exist: {source}")
    try:
        return load_dataset(source)
    except Exception as error:  # the hub raises one class for each cause
        raise ValueError(
            f"--train_data {source!r} is neither a file or folder here nor a data set "
            f"that the Hugging Face hub gives: {error}"
        ) from error


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def pack(
    texts: Dataset, tokenizer: Any, length: int, *, column: str = "text"
) -> Dataset:
    """Rows of `input_ids` of exactly `length` tokens, an end-of-text after each text.

    Texts are joined in their order and cut; the rest of each thousand of texts, shorter
    than `length`, is dropped.

    Raises:
        ValueError: where the texts do not fill one row.
    """

    def cut(rows: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        # the tokenizer warns of texts longer than the model: they are cut right here
        encoded = tokenizer(rows[column], add_special_tokens=False, verbose=False)
        ids = [
            i for text in encoded["input_ids"] for i in (*text, tokenizer.eos_token_id)
        ]
        starts = range(0, len(ids) - length + 1, length)
        return {"input_ids": [ids[start : start + length] for start in starts]}

    packed = texts.map(
        cut, batched=True, remove_columns=texts.column_names, desc="Packing"
    )
    if not len(packed):
        raise ValueError(
            f"{len(texts)} texts do not fill one row of {length} tokens; give more "
            "text or a smaller --max_length"
        )
    return packed


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch of packed rows: `input_ids` and the same as `labels`; models shift."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}
