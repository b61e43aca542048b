"""Where texts come from: files, folders, data sets and mixtures of them by weight."""

import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from mar_snn.distill.records import FORMATS, find_files, read_records
from mar_snn.distill.texts import Messages, text_of

__all__ = [
    "PAPER_MIXTURE",
    "Reading",
    "Source",
    "interleave",
    "parse_sources",
    "read_source",
]

logger = logging.getLogger(__name__)

Texts: TypeAlias = Dataset | IterableDataset

#: Names of splits that are not trained on, the first that there is.
_HELD_OUT = ("validation", "test", "eval", "heldout")
_ROW = Features({"text": Value("string"), "error": Value("string")})


@dataclass(frozen=True)
class Source:
    """A file, a folder or a data set, what to read of it, and its share of a mixture.

    Args:
        path: a file (.jsonl, .json, .txt, .parquet; the first three also .gz), a folder
            of them or one that `datasets` saved, or the name of a data set on the hub.
        weight: draws from this source, relative to the weights of the others.
        column: holds a text, or a list of messages with role and content, or from and
            value.
        completion_column: if given, `column` is a prompt and this one its answer.
        name: of the hub's configuration.
        split: to train on; "train", or the first one, where not given.

    Raises:
        ValueError: where the weight is not above zero.
    """

    path: str
    weight: float = 1.0
    column: str = "text"
    completion_column: str | None = None
    name: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"the weight of {self.path} must be a number above zero, got "
                f"{self.weight}"
            )

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [c for c in (self.column, self.completion_column) if c is not None]


def _genqa(split: str, weight: float) -> Source:
    return Source("tomg-group-umd/GenQA", weight, split=split)


#: What MAR (arXiv 2601.21503) distils on: GenQA (its nine splits), OpenHermes-2.5 and
#: Infinity-Instruct. The paper has no weights: these are millions of conversations.
PAPER_MIXTURE = (
    _genqa("academic", 4.21),
    _genqa("mmlu", 2.41),
    _genqa("task", 1.0),
    _genqa("writing", 0.93),
    _genqa("dialog", 0.82),
    _genqa("math", 0.52),
    _genqa("code", 0.51),
    _genqa("multiple_choice", 0.37),
    _genqa("general", 0.3),
    Source("teknium/OpenHermes-2.5", 1.0, "conversations"),
    Source("BAAI/Infinity-Instruct", 7.45, "conversations", name="7M"),
)


def parse_sources(
    words: Sequence[str], column: str = "text", completion_column: str | None = None
) -> list[Source]:
    """Sources from a command line: `path`, `path=weight`, or "paper" (its mixture).

    A word that is a path as a whole is that path, as in `year=2024`; the path before
    its last "=" is then meant by another spelling of the number, as in `year=2024.0`.

    Raises:
        ValueError: where a weight is not above zero.
    """
    sources: list[Source] = []
    for word in words:
        path, equals, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            equals = ""
        whole = Path(word).exists()
        if whole and (word == "paper" or (equals and Path(path).exists())):
            logger.warning("%s is read as the path of that name, which exists", word)
        if word == "paper" and not whole:
            sources += PAPER_MIXTURE
        elif equals and not whole:
            sources.append(Source(path, weight, column, completion_column))
        else:
            sources.append(Source(word, 1.0, column, completion_column))
    return sources


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Args:
        streaming: read while training instead of before.
        shards: parts of a stream, at least one for each worker of the DataLoader. Files
            fewer than that are read by several workers, each taking its own records.
        on_bad_record: "raise" a ValueError with file and line, or "skip" with a count.
        chat: writes messages as text, such as
            `partial(apply_chat_template, tokenizer=tokenizer)`.

    Raises:
        ValueError: for another word, or less than one shard.
    """

    streaming: bool = False
    shards: int = 1
    on_bad_record: str = "raise"
    chat: Callable[[Messages], str] | None = None

    def __post_init__(self) -> None:
        if self.on_bad_record not in ("raise", "skip"):
            raise ValueError(
                f"on_bad_record must be raise or skip, got {self.on_bad_record!r}"
            )
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, got {self.shards}")


def read_source(source: Source, reading: Reading) -> tuple[Texts, Texts | None]:
    """Texts to train on and held-out ones (None: it has no such split): column `text`.

    Raises:
        ValueError: for a source that cannot be found or read, a split that it does not
            have, and a bad record where that is fatal: at once, or while a stream is
            read.
    """
    path = Path(source.path)
    found: Mapping[str, Any]
    read: Callable[[Any, Source, Reading], Texts]
    if path.exists() and not _is_saved(path):
        read, found = _read_files, find_files(path)
    else:
        read = _read_rows
        found = load_from_disk(source.path) if path.exists() else _load(source, reading)
        if not isinstance(found, Mapping):
            found = {"train": found}
    train = source.split or ("train" if "train" in found else next(iter(found)))
    if train not in found:
        raise ValueError(
            f"{source.path} has no split {train!r}: it has {', '.join(found)}"
        )
    heldout = [name for name in _HELD_OUT if name in found and name != train]
    texts = [
        _without_bad_records(read(found[name], source, reading), source)
        for name in (train, *heldout[:1])
    ]
    return texts[0], texts[1] if heldout else None


def interleave(
    texts: Sequence[Texts],
    weights: Sequence[float],
    *,
    seed: int,
    repeat: bool = True,
) -> Texts:
    """One mixture, of which each text is drawn from a source by the weights.

    A source that ends starts again until every one has been read to its end, so that
    the weights hold all the way; with repeat=False each text comes once and the longer
    sources come alone at the end.
    """
    if len(texts) == 1:
        return texts[0]
    without = "" if repeat else "_without_replacement"
    return interleave_datasets(
        list(texts),
        probabilities=[weight / sum(weights) for weight in weights],
        seed=seed,
        stopping_strategy=f"all_exhausted{without}",
    )


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _load(source: Source, reading: Reading) -> Any:
    path = Path(source.path)
    if path.is_absolute() or path.suffix in (*FORMATS, ".gz"):
        raise ValueError(
            f"--train_data names a file that does not exist: {source.path}"
        )
    try:
        return load_dataset(source.path, source.name, streaming=reading.streaming)
    except Exception as error:  # the hub raises one class for each cause
        raise ValueError(
            f"--train_data {source.path!r} is neither a file or folder here nor a data "
            f"set that the Hugging Face hub gives: {error}"
        ) from error


def _read_files(files: list[str], source: Source, reading: Reading) -> Texts:
    each = -(-reading.shards // len(files)) if reading.streaming else 1
    parts = [
        # a file that has changed since is another one to the cache of `datasets`
        (file, part, each, Path(file).stat().st_mtime_ns)
        for file in files
        for part in range(each)
    ]
    read = (IterableDataset if reading.streaming else Dataset).from_generator
    options = {"parts": parts, "source": source, "reading": reading}
    try:
        return read(_generate, features=_ROW, gen_kwargs=options)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    except ValueError as error:
        raise ValueError(f"{source.path} holds no data: {error}") from error


def _generate(
    parts: list[tuple[str, int, int, int]], source: Source, reading: Reading
) -> Iterator[dict[str, str]]:
    for file, part, each, _ in parts:
        for place, record in read_records(file, source.columns, part, each):
            yield _row(record, place, source, reading)


def _read_rows(rows: Texts, source: Source, reading: Reading) -> Texts:
    if reading.streaming and isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=min(reading.shards, len(rows)))

    # of a stream of JSON they are not known before it is read
    columns = rows.column_names or list(next(iter(rows), {}))
    # a function of this module, whose name stands for it in the cache of `datasets`
    return rows.map(
        _numbered_row,
        with_indices=True,
        features=_ROW,
        remove_columns=columns,
        fn_kwargs={"source": source, "reading": reading},
    )


def _numbered_row(
    record: Mapping[str, Any], index: int, source: Source, reading: Reading
) -> dict[str, str]:
    return _row(record, f"{source.path}, row {index}", source, reading)


def _row(
    record: Mapping[str, Any] | ValueError,
    place: str,
    source: Source,
    reading: Reading,
) -> dict[str, str]:
    """The text of a record, or what is wrong with it."""
    try:
        if isinstance(record, ValueError):
            raise record
        text = text_of(record, source.column, source.completion_column, reading.chat)
    except ValueError as error:
        sentence = f"{place}: {error}"
        if reading.on_bad_record == "raise":
            raise ValueError(sentence) from error
        return {"text": "", "error": sentence}
    return {"text": text, "error": ""}


def _without_bad_records(texts: Texts, source: Source) -> Texts:
    if isinstance(texts, IterableDataset):
        texts = texts.filter(_Skip(source.path), input_columns="error")
    else:
        good = texts.filter(operator.not_, input_columns="error", desc="Checking")
        bad = len(texts) - len(good)
        if bad:
            first = next(error for error in texts["error"] if error)
            logger.warning(
                "%s: skipped %d bad records of %d; the first: %s",
                *(source.path, bad, len(texts), first),
            )
        texts = good
    return texts.select_columns("text")


class _Skip:
    """Counts the bad records of a stream; warns of the 1st, 10th, 100th and so on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0

    def __call__(self, error: str) -> bool:
        if error:
            self.count += 1
            if str(self.count).strip("0") == "1":
                logger.warning(
                    "%s: skipped %d bad records so far; the last: %s",
                    *(self.path, self.count, error),
                )
        return not error
