import gzip
import json

import pytest
import torch
from datasets import Dataset, DatasetDict

from mar_snn.distill.data import load_text, standard_library_text
from mar_snn.distill.evaluation import perplexity

pytestmark = pytest.mark.usefixtures("away_from_home")


def texts(*values: str) -> Dataset:
    return Dataset.from_dict({"text": list(values)})


def test_the_standard_library_is_split_by_the_name_of_the_document():
    splits = standard_library_text()
    names = {split: set(docs["name"]) for split, docs in splits.items()}
    assert names["train"].isdisjoint(names["heldout"])
    documents = names["train"] | names["heldout"]
    assert {"json/decoder.py", "pydoc_data/topics/lambda"} <= documents
    assert not any("test" in name.split("/")[:-1] for name in documents)
    share = len(names["heldout"]) / len(documents)
    assert 0.02 < share < 0.1
    assert standard_library_text()["heldout"]["name"] == splits["heldout"]["name"]


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.json", "texts.jsonl.gz"])
def test_json_lines_are_read_and_split(tmp_path, name):
    lines = "\n".join(json.dumps({"body": f"text {i}"}) for i in range(40))
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    splits = load_text(str(path), "body", seed=1)
    assert (len(splits["train"]), len(splits["heldout"])) == (38, 2)
    assert set(splits["train"]["text"]).isdisjoint(splits["heldout"]["text"])
    assert (
        load_text(str(path), "body", seed=1)["heldout"]["text"]
        == (splits["heldout"]["text"])
    )


def test_lines_of_a_text_file_are_texts_and_empty_ones_are_dropped(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\n\nthree\n")
    splits = load_text(str(path), "text")
    both = [*splits["train"]["text"], *splits["heldout"]["text"]]
    assert sorted(both) == ["one", "three", "two"]


def test_a_saved_data_set_is_read_with_its_own_held_out_split(tmp_path):
    saved = DatasetDict(train=texts("a", "b", "c"), validation=texts("d"))
    saved.save_to_disk(tmp_path / "both")
    splits = load_text(str(tmp_path / "both"), "text")
    assert splits["train"]["text"] == ["a", "b", "c"]
    assert splits["heldout"]["text"] == ["d"]
    texts("a", "b").save_to_disk(tmp_path / "one")
    assert len(load_text(str(tmp_path / "one"), "text")["heldout"]) == 1


def test_a_folder_of_text_files_is_read(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.txt").write_text("a\nb\n")
    (folder / "two.txt").write_text("c\n")
    splits = load_text(str(folder), "text")
    assert len(splits["train"]) + len(splits["heldout"]) == 3


def test_bad_sources_are_named_in_one_sentence(tmp_path):
    (tmp_path / "texts.csv").write_text("a,b")
    one = tmp_path / "one.txt"
    one.write_text("only\n")
    for source, column, sentence in [
        (str(tmp_path / "texts.csv"), "text", "must end in .json, .jsonl, .txt"),
        (str(tmp_path / "no.jsonl"), "text", "a file that does not exist"),
        (str(one), "body", "has no column 'body': it has text"),
        (str(one), "text", "holds 1 texts; at least 2 are needed"),
        ("nobody/nothing", "text", "neither a file or folder here nor a data set"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load_text(source, column)


def test_an_empty_file_is_refused(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt"):
        load_text(str(empty), "text")


def test_perplexity_is_the_exponential_of_the_mean_loss(teacher, rows):
    ids = torch.tensor(rows["input_ids"])
    expected = teacher(ids, labels=ids).loss.exp().item()
    for batch_size in (16, 5):
        result = perplexity(teacher, rows, batch_size=batch_size)
        assert result == pytest.approx(expected, rel=1e-5)
    assert not teacher.training
