"""Small files of every format, and what is read of them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mar_snn.distill.data import Reading, Source
from mar_snn.distill.sources import read_source

BOTH = pytest.mark.parametrize("streaming", [False, True])


def write_lines(path: Path, *lines: str | bytes | dict) -> Path:
    lines = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    raw = b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + b"\n"
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def read(source: Source, **options) -> list[str]:
    texts, _ = read_source(source, Reading(**options))
    return [row["text"] for row in texts]
