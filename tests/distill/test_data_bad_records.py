"""Bad records of every kind: fatal with their place, or skipped with a count."""

import gzip
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mar_snn.distill.data import Source
from tests.distill.files import BOTH, read, write_lines, write_parquet

pytestmark = pytest.mark.usefixtures("away_from_home")

GOOD = {"text": "good"}
BAD = {
    "broken JSON": ('{"text": "oops', r":2: is not JSON: Unterminated string"),
    "a list": ("[1]", r":2: is not JSON: no object but list"),
    "another column": ({"body": "x"}, r":2: has no column 'text': it has body"),
    "another type": (
        {"text": 7},
        r":2: column 'text' must hold a text or messages, got int",
    ),
    "null": (
        {"text": None},
        r":2: column 'text' must hold a text or messages, got NoneType",
    ),
    "an empty text": ({"text": " \n"}, r":2: column 'text' is empty"),
    "no UTF-8": (b'{"text": "\xff"}', r":2: is not UTF-8: .* byte 0xff"),
    "no character": ('{"text": "\\ud800"}', r":2: .*surrogates not allowed"),
    "odd messages": (
        {"text": [{"role": "user"}]},
        r":2: a message must have",
    ),
}


@BOTH
@pytest.mark.parametrize(("line", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_record_is_named_with_file_and_line(
    tmp_path, streaming, line, sentence, plain
):
    path = write_lines(tmp_path / "a.jsonl", GOOD, line, GOOD)
    with pytest.raises(ValueError, match=r"a\.jsonl" + sentence):
        read(Source(str(path)), streaming=streaming, chat=plain)


@BOTH
@pytest.mark.parametrize(("line", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_record_can_be_skipped_with_a_count(
    tmp_path, streaming, line, sentence, plain, caplog
):
    path = write_lines(tmp_path / "a.jsonl", GOOD, line, GOOD)
    options = {"streaming": streaming, "on_bad_record": "skip", "chat": plain}
    with caplog.at_level(logging.WARNING, logger="mar_snn"):
        assert read(Source(str(path)), **options) == ["good", "good"]
    (message,) = caplog.messages
    assert "skipped 1 bad records" in message
    assert pytest.raises(ValueError, match=sentence).matches(ValueError(message))


@BOTH
def test_many_bad_records_make_few_warnings(tmp_path, streaming, caplog):
    path = write_lines(tmp_path / "a.jsonl", GOOD, *["oops"] * 123, GOOD)
    options = {"streaming": streaming, "on_bad_record": "skip"}
    with caplog.at_level(logging.WARNING, logger="mar_snn"):
        assert read(Source(str(path)), **options) == ["good", "good"]
    counts = [message.split("skipped ")[1].split()[0] for message in caplog.messages]
    assert counts == (["1", "10", "100"] if streaming else ["123"])


@BOTH
@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ("text", r"a\.parquet, row 1: column 'text' is empty"),
        ("body", r"a\.parquet, row 0: has no column 'body': it has text, n"),
    ],
)
def test_a_bad_row_of_parquet_is_named_by_its_index(
    tmp_path, streaming, column, sentence
):
    path = write_parquet(tmp_path / "a.parquet", text=["a", "", "c"], n=[1, 2, 3])
    source = Source(str(path), column=column)
    with pytest.raises(ValueError, match=sentence):
        read(source, streaming=streaming)


@BOTH
def test_undecodable_bytes_in_parquet_are_one_bad_row(tmp_path, streaming):
    column = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    source = Source(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: is not UTF-8"):
        read(source, streaming=streaming)
    options = {"streaming": streaming, "on_bad_record": "skip"}
    assert read(source, **options) == ["a", "c"]


@BOTH
@pytest.mark.parametrize(
    ("name", "raw", "sentence"),
    [
        ("a.parquet", b"PAR1 no more", r"a\.parquet, row 0: cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08 no more", r"a\.jsonl\.gz:1: cannot be read"),
        ("a.json", b'[{"text": "a"}', r"a\.json, entry 0: cannot be read"),
        ("a.json.gz", b"no gzip", r"a\.json\.gz:1: cannot be read"),
    ],
)
def test_broken_files_are_bad_records(tmp_path, streaming, name, raw, sentence):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=sentence):
        read(Source(str(tmp_path / name)), streaming=streaming)


@BOTH
def test_a_file_that_breaks_off_is_read_up_to_there(tmp_path, streaming):
    path = tmp_path / "a.txt.gz"
    # two gzip members, of which the second one lacks its end
    path.write_bytes(gzip.compress(b"one\n" * 3) + gzip.compress(b"two\n")[:-4])
    with pytest.raises(ValueError, match=r"a\.txt\.gz:\d: cannot be read"):
        read(Source(str(path)), streaming=streaming)
    texts = read(Source(str(path)), streaming=streaming, on_bad_record="skip")
    assert texts[:3] == ["one"] * 3


@BOTH
def test_a_bad_row_of_a_saved_data_set_is_named_by_its_index(tmp_path, streaming):
    Dataset.from_dict({"text": ["a", "", "c"]}).save_to_disk(tmp_path / "saved")
    source = Source(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="saved, row 1: column 'text' is empty"):
        read(source, streaming=streaming)
    options = {"streaming": streaming, "on_bad_record": "skip"}
    assert read(source, **options) == ["a", "c"]
