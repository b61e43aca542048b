"""Text for training: from a data set, a file, a folder, or Python's own library."""

import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from mar_snn.distill.packing import PackedStream, collate, pack
from mar_snn.distill.sources import (
    PAPER_MIXTURE,
    Reading,
    Source,
    Texts,
    interleave,
    parse_sources,
    read_source,
)
from mar_snn.distill.texts import apply_chat_template

__all__ = [
    "PAPER_MIXTURE",
    "PackedStream",
    "Reading",
    "Source",
    "apply_chat_template",
    "collate",
    "load_text",
    "pack",
    "parse_sources",
    "standard_library_text",
]

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
#: Texts of a stream from which the next one is drawn.
_SHUFFLED_TEXTS = 1000
_AT_ONCE = Reading()


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
            yield name.as_posix(), path.read_text("utf-8-sig", errors="replace")


def _help_topics() -> Iterator[tuple[str, str]]:
    for topic, text in topics.items():
        yield f"pydoc_data/topics/{topic}", text


def load_text(
    sources: str | Sequence[Source],
    column: str = "text",
    *,
    seed: int = 0,
    reading: Reading = _AT_ONCE,
) -> DatasetDict | IterableDatasetDict:
    """Splits "train" and "heldout" of texts from one or several sources.

    What is held out of a source is its validation or test split; else one text in
    twenty: drawn by the seed, or in a stream by the checksum of the text.

    Args:
        sources: a path or name (see `Source`), or a mixture of sources by weights.
        column: of the path or name, holds the text.
        seed: of the split, of the draws between sources and of the order of a stream.
        reading: at once (the default) or streaming, and what a bad record means.

    Raises:
        ValueError: where a file is missing or has another format, the column is
            missing, there are fewer than two texts, or a record is bad and that is
            fatal.
    """
    if isinstance(sources, str):
        sources = [Source(sources, column=column)]
    if not sources:
        raise ValueError("there are no sources of text")
    pairs = [_train_and_heldout(source, seed, reading) for source in sources]
    train, heldout = (list(texts) for texts in zip(*pairs, strict=True))
    weights = [source.weight for source in sources]
    mixed = {
        "train": interleave(train, weights, seed=seed),
        "heldout": interleave(heldout, weights, seed=seed, repeat=False),
    }
    if not reading.streaming:
        return DatasetDict(mixed)
    mixed["train"] = mixed["train"].shuffle(seed=seed, buffer_size=_SHUFFLED_TEXTS)
    return IterableDatasetDict(mixed)


def _train_and_heldout(
    source: Source, seed: int, reading: Reading
) -> tuple[Texts, Texts]:
    train, heldout = read_source(source, reading)
    if isinstance(train, IterableDataset):
        if heldout is not None:
            return train, heldout
        return (
            train.filter(partial(_is_in, heldout=False), input_columns="text"),
            train.filter(partial(_is_in, heldout=True), input_columns="text"),
        )
    if len(train) < 2:
        raise ValueError(
            f"{source.path} holds {len(train)} texts; at least 2 are needed"
        )
    if heldout is not None and len(heldout):
        return train, heldout
    held_out = max(1, round(len(train) / _HELD_OUT_ONE_IN))
    both = train.train_test_split(test_size=held_out, seed=seed)
    return both["train"], both["test"]


def _is_in(text: str, *, heldout: bool) -> bool:
    """Whether a text is in its part: by its checksum, so duplicates stay together."""
    return (zlib.crc32(text.encode()) % _HELD_OUT_ONE_IN == 0) == heldout
