"""Files of every format, chats, mixtures and bad records, at once and streaming."""

import json
import string
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from mar_snn.distill.data import (
    PAPER_MIXTURE,
    Reading,
    Source,
    apply_chat_template,
    load_text,
)
from mar_snn.distill.records import read_records
from mar_snn.distill.sources import interleave, parse_sources, read_source
from mar_snn.distill.texts import read_messages, text_of
from tests.distill.files import BOTH, read, write_lines, write_parquet

pytestmark = pytest.mark.usefixtures("away_from_home")

CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
]
PLAIN_CHAT = "User: What is 2 + 2?\n\nAssistant: 4"


# ---- formats


@BOTH
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines_are_texts_of_one_column(tmp_path, streaming, name):
    # other columns may have any type, and differ from line to line
    path = write_lines(
        tmp_path / name,
        {"body": "one", "meta": 1},
        "",
        {"body": "zwei Ä", "meta": {"x": []}},
    )
    texts = read(Source(str(path), column="body"), streaming=streaming)
    assert texts == ["one", "zwei Ä"]


@BOTH
def test_one_json_array_is_read_entry_by_entry(tmp_path, streaming):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=2))
    assert read(Source(str(path)), streaming=streaming) == ["a", "b"]


@BOTH
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_every_line_of_a_text_file_is_a_text(tmp_path, streaming, name):
    path = write_lines(tmp_path / name, "one ", "  ", "two\r")
    assert read(Source(str(path)), streaming=streaming) == ["one ", "two"]


@BOTH
def test_parquet_is_read_by_its_column(tmp_path, streaming):
    path = write_parquet(tmp_path / "a.parquet", body=["a", "b", "c"], n=[1, 2, 3])
    source = Source(str(path), column="body")
    assert read(source, streaming=streaming) == ["a", "b", "c"]


@BOTH
def test_a_folder_is_read_with_its_splits(tmp_path, streaming):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "train-1.jsonl", {"text": "a"})
    write_lines(folder / "train-2.jsonl", {"text": "b"})
    write_lines(folder / "validation.jsonl", {"text": "c"})
    train, heldout = read_source(Source(str(folder)), Reading(streaming=streaming))
    assert [row["text"] for row in train] == ["a", "b"]
    assert [row["text"] for row in heldout] == ["c"]
    other = Source(str(folder), split="validation")
    assert read(other, streaming=streaming) == ["c"]


@BOTH
def test_a_folder_is_read_whatever_formats_it_mixes(tmp_path, streaming, caplog):
    folder = tmp_path / "data [v2] *"  # no pattern, but a name
    folder.mkdir()
    write_lines(folder / "x.jsonl", {"text": "a"})
    write_lines(folder / "y.txt.gz", "b")
    write_parquet(folder / "z.parquet", text=["c"])
    write_lines(folder / "README.md", "no text")
    assert read(Source(str(folder)), streaming=streaming) == ["a", "b", "c"]
    assert not caplog.records
    # what some files name, the others are trained on
    write_lines(folder / "validation.txt", "d")
    train, heldout = read_source(Source(str(folder)), Reading(streaming=streaming))
    assert [row["text"] for row in train] == ["a", "b", "c"]
    assert [row["text"] for row in heldout] == ["d"]
    write_lines(folder / "train.txt", "e")
    write_lines(folder / "n.csv", "text")
    assert read(Source(str(folder)), streaming=streaming) == ["e"]
    (warning,) = caplog.messages
    assert warning.endswith("can be: n.csv, x.jsonl, y.txt.gz, z.parquet")


def test_a_folder_without_a_readable_file_is_refused(tmp_path):
    write_lines(tmp_path / "n.csv", "text")
    with pytest.raises(ValueError, match=r"holds no data: no file .*, only n\.csv"):
        read(Source(str(tmp_path)))


@BOTH
def test_the_mark_that_a_file_begins_with_is_no_text(tmp_path, streaming):
    mark = "\ufeff".encode()
    line = json.dumps({"text": "a"}).encode()
    lines = {
        "a.txt": [mark + b"a", mark + b"b", mark],  # files that were joined
        "a.txt.gz": [mark + b"a", b"b"],
        "a.jsonl": [mark + line, mark + b'{"text": "\\ufeffb"}'],
        "a.jsonl.gz": [mark + line, line.replace(b"a", b"b")],
        "a.json": [mark + b"[" + line + b', {"text": "b"}]'],
    }
    for name, raw in lines.items():
        path = write_lines(tmp_path / name, *raw)
        assert read(Source(str(path)), streaming=streaming) == ["a", "b"]
    path = write_parquet(tmp_path / "a.parquet", text=["\ufeffa", "b"])
    assert read(Source(str(path)), streaming=streaming) == ["a", "b"]
    assert read_messages([{"from": "gpt", "value": "\ufeffa"}])[0]["content"] == "a"


@BOTH
def test_a_saved_data_set_is_read(tmp_path, streaming):
    saved = DatasetDict(
        code=Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}),
        math=Dataset.from_dict({"text": ["c"], "n": [3]}),
    )
    saved.save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    assert read(Source(path, split="math"), streaming=streaming) == ["c"]
    assert read(Source(path), streaming=streaming) == ["a", "b"]


def test_a_changed_file_is_read_again(tmp_path):
    path = write_lines(tmp_path / "a.txt", "old")
    assert read(Source(str(path))) == ["old"]
    write_lines(path, "new")
    assert read(Source(str(path))) == ["new"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_the_parts_of_a_file_are_its_records_once_each(tmp_path, name):
    numbers = [str(i) for i in range(7)]
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, text=numbers)
    elif name == "a.json":
        path.write_text(json.dumps([{"text": n} for n in numbers]))
    else:
        write_lines(path, *({"text": n} for n in numbers))
    places = {}
    for part in range(3):
        for place, record in read_records(str(path), ["text"], part, 3):
            places[place.removeprefix(str(path))] = record["text"]
    assert sorted(places.values()) == numbers
    expected = {"a.jsonl": ":7", "a.json": ", entry 6", "a.parquet": ", row 6"}[name]
    assert places[expected] == "6"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (Source("no.parquet"), "a file that does not exist: no.parquet"),
        (Source("/no/folder"), "a file that does not exist: /no/folder"),
        (Source("nobody/nothing"), "neither a file or folder here nor a data set"),
        (Source("{folder}/a.csv"), r"must end in \.json, \.jsonl, \.txt, \.parquet"),
        (Source("{folder}/empty"), "empty holds no data"),
        (Source("{folder}/blank.txt"), "blank.txt holds no data"),
        (Source("{folder}/a.txt", split="math"), "has no split 'math': it has train"),
    ],
)
def test_sources_that_cannot_be_read_are_named(tmp_path, source, sentence):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "a.txt", "a")
    write_lines(tmp_path / "blank.txt", "  ")
    source = Source(source.path.replace("{folder}", str(tmp_path)), split=source.split)
    with pytest.raises(ValueError, match=sentence):
        read(source)


# ---- messages


def test_messages_of_both_layouts_are_the_same():
    share_gpt = [
        {"from": "human", "value": "What is 2 + 2?", "weight": None},
        {"from": "gpt", "value": "4", "weight": 1.0},
    ]
    assert read_messages(share_gpt) == read_messages(CHAT) == CHAT
    system = [{"from": "system", "value": "Be brief."}]
    assert read_messages(system) == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    "turns", [["hello"], [{"role": "user"}], [{"role": "user", "content": None}], [7]]
)
def test_messages_of_another_layout_are_refused(turns):
    with pytest.raises(ValueError, match="a message must have the texts role and"):
        read_messages(turns)


def test_no_messages_are_refused():
    with pytest.raises(ValueError, match="there are no messages"):
        read_messages([])


def test_the_chat_template_of_the_tokenizer_is_applied(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    record = {"conversations": CHAT}
    chat = partial(apply_chat_template, tokenizer=tokenizer)
    text = text_of(record, "conversations", chat=chat)
    assert text == "<user>What is 2 + 2?<assistant>4"
    own = partial(chat, template="{{ messages | length }} turns")
    assert text_of(record, "conversations", chat=own) == "2 turns"


def test_without_a_chat_template_one_must_be_asked_for(tokenizer, plain):
    with pytest.raises(ValueError, match="the tokenizer has no chat template: give"):
        apply_chat_template(CHAT, tokenizer)
    with pytest.raises(ValueError, match="'m' holds messages: give a chat template"):
        text_of({"m": CHAT}, "m")
    assert text_of({"m": CHAT}, "m", chat=plain) == PLAIN_CHAT


def test_a_template_that_refuses_the_messages_is_a_bad_record(tokenizer):
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses the messages: roles must alternate"):
        apply_chat_template(CHAT, tokenizer, template)


def test_a_prompt_and_its_completion_are_two_turns(plain):
    record = {"prompt": "What is 2 + 2?", "completion": "4"}
    assert text_of(record, "prompt", "completion", plain) == PLAIN_CHAT
    with pytest.raises(ValueError, match="has no column 'answer': it has prompt"):
        text_of(record, "prompt", "answer", plain)


@BOTH
def test_the_layouts_of_the_papers_data_sets_are_read(tmp_path, streaming, plain):
    """Local files with the columns of GenQA, OpenHermes-2.5 and Infinity-Instruct."""
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    genqa = {
        "text": [
            [{"content": "a?", "role": "user"}, {"content": "b", "role": "assistant"}]
        ],
        "prompt": ["p"],
        "template": ["t"],
        "idx": [0],
        "category": [None],
    }
    infinity = {
        "id": [0],
        "conversations": [turns],
        "label": [{"ability_en": ["x"]}],
        "langdetect": ["en"],
        "source": ["s"],
    }
    write_parquet(tmp_path / "genqa.parquet", **genqa)
    write_parquet(tmp_path / "infinity.parquet", **infinity)
    hermes = [{"conversations": turns, "source": "s", "system_prompt": None}]
    (tmp_path / "hermes.json").write_text(json.dumps(hermes, indent=1))
    columns = {source.path: source.column for source in PAPER_MIXTURE}
    for name, hub in [
        ("genqa.parquet", "tomg-group-umd/GenQA"),
        ("infinity.parquet", "BAAI/Infinity-Instruct"),
        ("hermes.json", "teknium/OpenHermes-2.5"),
    ]:
        source = Source(str(tmp_path / name), column=columns[hub])
        texts = read(source, streaming=streaming, chat=plain)
        assert texts == ["User: a?\n\nAssistant: b"]


def test_the_papers_mixture_has_its_three_data_sets():
    names = {"tomg-group-umd/GenQA", "teknium/OpenHermes-2.5", "BAAI/Infinity-Instruct"}
    assert {source.path for source in PAPER_MIXTURE} == names
    splits = [source.split for source in PAPER_MIXTURE if "GenQA" in source.path]
    assert len(set(splits)) == 9
    assert sum(source.weight for source in PAPER_MIXTURE) == pytest.approx(19.52)


@BOTH
@pytest.mark.parametrize("layout", ["parquet", "json"])
def test_a_data_set_of_the_hub_is_read_through_datasets(
    tmp_path, monkeypatch, streaming, plain, layout
):
    path = tmp_path / f"code.{layout}"
    if layout == "parquet":
        write_parquet(path, text=[CHAT, CHAT], idx=[0, 1])
    else:
        path.write_text(json.dumps([{"text": CHAT, "idx": i} for i in range(2)]))

    def from_here(path_, name, *, streaming):
        assert (path_, name) == ("somebody/something", "7M")
        return load_dataset(layout, data_files={"code": str(path)}, streaming=streaming)

    monkeypatch.setattr("mar_snn.distill.sources.load_dataset", from_here)
    source = Source("somebody/something", name="7M", split="code")
    assert read(source, streaming=streaming, chat=plain) == [PLAIN_CHAT] * 2


# ---- mixtures


def letters(tmp_path: Path, name: str, count: int) -> Source:
    path = tmp_path / f"{name}.jsonl"
    write_lines(path, *({"text": f"{name}{i}"} for i in range(count)))
    return Source(str(path), weight=3.0 if name == "a" else 1.0)


@BOTH
def test_a_mixture_has_its_weights_and_is_the_same_for_the_same_seed(
    tmp_path, streaming
):
    sources = [letters(tmp_path, "a", 400), letters(tmp_path, "b", 400)]
    reading = Reading(streaming=streaming)
    runs = [
        [row["text"] for row in load_text(sources, seed=seed, reading=reading)["train"]]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    share = sum(text.startswith("a") for text in runs[0]) / len(runs[0])
    assert share == pytest.approx(0.75, abs=0.05)
    # b is drawn a third as often, so a starts again until b has ended too
    held_out = {
        row["text"] for row in load_text(sources, seed=1, reading=reading)["heldout"]
    }
    every = {f"{name}{i}" for name in "ab" for i in range(400)}
    assert set(runs[0]) == every - held_out
    assert 10 <= len(held_out) <= 70


def test_held_out_texts_of_a_mixture_come_once_each():
    parts = [Dataset.from_dict({"text": [n]}) for n in "ab"]
    mixed = interleave(parts, [9.0, 1.0], seed=0, repeat=False)
    assert sorted(mixed["text"]) == ["a", "b"]


def test_a_stream_holds_out_by_the_text_so_that_duplicates_stay_together(tmp_path):
    twice = [{"text": f"text {i % 200}"} for i in range(400)]
    path = write_lines(tmp_path / "a.jsonl", *twice)
    splits = load_text(str(path), reading=Reading(streaming=True))
    train, heldout = ([row["text"] for row in s] for s in splits.values())
    assert len(train) + len(heldout) == 400
    assert set(train).isdisjoint(heldout)
    assert 2 <= len(set(heldout)) <= 25


def test_a_validation_split_is_what_a_stream_holds_out(tmp_path):
    for split, count in (("train", 30), ("test", 2)):
        write_lines(tmp_path / f"{split}.txt", *string.ascii_letters[:count])
    splits = load_text(str(tmp_path), reading=Reading(streaming=True))
    assert [row["text"] for row in splits["heldout"]] == ["a", "b"]
    assert len(list(splits["train"])) == 30


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_above_zero(weight):
    with pytest.raises(ValueError, match="must be a number above zero"):
        Source("a.txt", weight)


def test_sources_are_read_from_a_command_line():
    words = ["a=b.jsonl=0.7", "c.txt=2", "some/data", "x=y.txt"]
    sources = parse_sources(words, "prompt", "answer")
    assert [(source.path, source.weight) for source in sources] == [
        ("a=b.jsonl", 0.7),
        ("c.txt", 2.0),
        ("some/data", 1.0),
        ("x=y.txt", 1.0),
    ]
    assert all(source.columns == ["prompt", "answer"] for source in sources)
    assert parse_sources(["paper", "mine.txt"])[:-1] == list(PAPER_MIXTURE)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("year=2024", "paper"):
        Path(name).mkdir()

    def read(*words: str) -> list[tuple[str, float]]:
        return [(s.path, s.weight) for s in parse_sources(words)]

    assert read("year=2024") == [("year=2024", 1.0)]
    assert not caplog.records
    assert read("paper", "year=2024=0.5") == [("paper", 1.0), ("year=2024", 0.5)]
    Path("year").mkdir()  # both could be meant
    assert read("year=2024", "year=2024.0") == [("year=2024", 1.0), ("year", 2024.0)]
    assert caplog.messages == [
        f"{name} is read as the path of that name, which exists"
        for name in ("paper", "year=2024")
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_bad_record": "ignore"}, "must be raise or skip, got 'ignore'"),
        ({"shards": 0}, "shards must be at least 1, got 0"),
    ],
)
def test_readings_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Reading(**options)


def test_no_sources_are_refused():
    with pytest.raises(ValueError, match="there are no sources of text"):
        load_text([])
