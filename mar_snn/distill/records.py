"""The records of local files, each with the place where it stands.

JSON lines (or one JSON array), text (a line is a record with the column `text`) and
Parquet; the first two also gzipped. A record that cannot be read is handed on as the
error that it is, so that the caller decides whether it is fatal.
"""

import codecs
import glob
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets.data_files import DataFilesDict, DataFilesList, get_data_patterns

__all__ = ["FORMATS", "find_files", "read_records"]

logger = logging.getLogger(__name__)

#: Endings of files that can be read.
FORMATS = (".json", ".jsonl", ".txt", ".parquet")
_ENDINGS = f"{', '.join(FORMATS)} (or .gz after it)"
_BATCH = 1000

#: A record, or why there is none.
Record = dict[str, Any] | ValueError


def find_files(path: Path) -> dict[str, list[str]]:
    """Files of each split: a file is "train", a folder is split as `datasets` does.

    Raises:
        ValueError: where there is no file, or one has another format.
    """
    if path.is_file():
        if _suffix(path) not in FORMATS:
            raise ValueError(f"--train_data must end in {_ENDINGS}, got {path.name}")
        return {"train": [str(path)]}
    base = glob.escape(str(path.absolute()))  # a name may have brackets
    try:
        named = DataFilesDict.from_local_or_remote(get_data_patterns(base), base)
    except FileNotFoundError as error:
        raise ValueError(f"{path} holds no data: there is no file in it") from error
    splits: dict[str, list[str]] = {}
    for split, names in named.items():
        if readable := [name for name in names if _suffix(Path(name)) in FORMATS]:
            splits[str(split)] = readable
    everything = DataFilesList.from_local_or_remote(["**"], base)
    left = sorted({*everything}.difference(*splits.values()))
    unnamed = [name for name in left if _suffix(Path(name)) in FORMATS]
    if unnamed and "train" not in splits:  # some name another split, these name none
        splits = {"train": unnamed, **splits}
        left = [name for name in left if name not in unnamed]
    if not splits:
        others = ", ".join(Path(name).name for name in left)
        raise ValueError(
            f"{path} holds no data: no file in it ends in {_ENDINGS}, only {others}"
        )
    if left:
        names = [str(Path(name).relative_to(path.absolute())) for name in left]
        logger.warning(
            "%s: not read, since their names are of no split that is or of no format "
            "that can be: %s",
            path,
            ", ".join(names),
        )
    return splits


def read_records(
    file: str, columns: Sequence[str], part: int = 0, parts: int = 1
) -> Iterator[tuple[str, Record]]:
    """(place, record or error) of every record whose number is `part` modulo `parts`.

    Lines are numbered from 1, rows of Parquet and entries of an array from 0.
    """
    path = Path(file)
    suffix = _suffix(path)
    raw: Iterator[tuple[int, Any]]
    parse: Callable[[Any], dict[str, Any]]
    if suffix == ".parquet":
        raw, parse, place = _rows(path, columns), _row, ", row "
    elif suffix == ".json" and _starts_an_array(path):
        raw, parse, place = _entries(path), _checked, ", entry "
    else:
        raw, parse, place = _lines(path), _text if suffix == ".txt" else _json, ":"
    for number, found in raw:
        if number % parts == part:
            yield f"{file}{place}{number}", _parsed(found, parse)


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _starts_an_array(path: Path) -> bool:
    with _open(path) as file:
        try:
            return _without_mark(file.read(64)).lstrip().startswith(b"[")
        except (EOFError, OSError, zlib.error):
            return False  # reading the lines will say so


def _without_mark(raw: bytes) -> bytes:
    """Without the U+FEFF that some programs write first: files are joined, so anywhere.

    It says that what follows is UTF-8, and is no part of a text.
    """
    return raw.removeprefix(codecs.BOM_UTF8)


def _parsed(found: Any, parse: Callable[[Any], dict[str, Any]]) -> Record:
    if isinstance(found, dict | ValueError):
        return found
    try:
        return parse(found)
    except UnicodeDecodeError as error:
        return ValueError(f"is not UTF-8: {error}")
    except (ValueError, RecursionError) as error:
        return ValueError(f"is not JSON: {error}")


def _lines(path: Path) -> Iterator[tuple[int, bytes | ValueError]]:
    number = 0
    with _open(path) as file:
        try:
            for number, raw in enumerate(file, 1):
                line = _without_mark(raw)
                if line.strip():
                    yield number, line
        except (EOFError, OSError, zlib.error) as error:
            yield number + 1, ValueError(f"cannot be read: {error}")


def _text(line: bytes) -> dict[str, Any]:
    return {"text": line.decode().rstrip("\r\n")}


def _json(line: bytes) -> dict[str, Any]:
    return _checked(json.loads(line.decode().rstrip()))


def _checked(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"no object but {type(record).__name__}")
    return record


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Of a file that is one JSON array, which has to be read at once."""
    try:
        with _open(path) as file:
            yield from enumerate(json.loads(_without_mark(file.read()).decode()))
    except (EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
        yield 0, ValueError(f"cannot be read: {error}")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if not set(columns) <= set(names):
            # a record without them, which every row is
            yield 0, {name: None for name in names if name not in columns}
            return
        for batch in file.iter_batches(_BATCH, columns=list(columns)):
            for row in range(batch.num_rows):
                yield number, (batch, row)
                number += 1
    except (pa.ArrowException, OSError) as error:
        yield number, ValueError(f"cannot be read: {error}")


def _row(found: tuple[pa.RecordBatch, int]) -> dict[str, Any]:
    batch, row = found
    return {name: batch[name][row].as_py() for name in batch.schema.names}
