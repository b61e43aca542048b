"""The preset, tasks from files, texts, and what is said of bad ones."""

import json
import re

import datasets
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from mar_snn.harness import MAR6, file_tasks, load_tasks, text_task
from mar_snn.harness.tasks import MAIN_METRICS, task_manager

GOOD = {"query": "q", "choices": ["a", "b"], "gold": 1}


def requests_of(task):
    """The (context, continuation) of every choice of every question."""
    task.build_all_requests()
    return [instance.args for instance in task.instances]


# ---- the paper's six


def test_the_six_tasks_are_lm_evals_own_and_have_the_metrics_that_judge_them():
    index = task_manager(everything=True).task_index
    for name in MAR6:
        config = load_yaml(index[name].yaml_path, resolve_func=False, recursive=True)
        assert config["task"] == name
        assert config["output_type"] == "multiple_choice"
        metrics = [entry["metric"] for entry in config["metric_list"]]
        assert metrics[0] == "acc"
        assert MAIN_METRICS.get(name, "acc") in metrics
    assert len(set(MAR6)) == 6
    assert MAIN_METRICS.keys() <= set(MAR6)


def test_without_a_network_a_task_of_lm_eval_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for names in (["mar6"], ["piqa"]):
        with pytest.raises(ValueError, match=r"piqa cannot be loaded: no route.*file"):
            load_tasks(names)


def test_a_name_that_nobody_knows_gets_the_close_ones(rows, write_tasks):
    folder = write_tasks(my_riddles=rows)
    with pytest.raises(ValueError, match=r"no task 'my_riddle'.*my_riddles"):
        load_tasks(["my_riddle"], folder=folder)


def test_mar6_is_taken_from_files_of_these_names(rows, write_tasks):
    folder = write_tasks(extra=rows, **dict.fromkeys(MAR6, rows))
    assert tuple(load_tasks(["mar6"], folder=folder)) == MAR6
    assert set(load_tasks(folder=folder)) == {*MAR6, "extra"}


def test_some_tasks_are_needed():
    with pytest.raises(ValueError, match="no tasks: name some"):
        load_tasks([])


# ---- files


def test_a_choice_stands_one_space_behind_the_query_or_its_answer(rows, write_tasks):
    tasks = load_tasks(folder=write_tasks(by_hand=rows))
    found = requests_of(tasks["by_hand"])
    assert found[:5] == [
        ("The sky is", " blue"),
        ("The sky is", " a fish"),
        ("The sky is", " Tuesday"),
        ("Question: two plus two?\nAnswer:", " four"),
        ("Question: two plus two?\nAnswer:", " five"),
    ]
    contexts = list(dict.fromkeys(context for context, _ in found))[2:]
    assert contexts == [
        "Up and",
        "Read.\nQuestion: why?\nAnswer:",
        "One\n\nQuestion: 1 < 2\nAnswer:",
        "x",
        "A Question: no.",
    ]


def test_a_question_reads_as_in_lm_evals_own_task(write_tasks):
    row = {"query": "Question: dresser\n", "choices": ["replace", "finish"], "gold": 1}
    path = task_manager(everything=True).task_index["piqa"].yaml_path
    template = load_yaml(path, resolve_func=False, recursive=True)["doc_to_text"]
    prompt = template.replace("{{goal}}", "dresser")
    ((context, _), _) = requests_of(load_tasks(folder=write_tasks(p=[row]))["p"])
    assert context == prompt


def test_a_folder_may_have_any_name(tmp_path, rows, write_tasks):
    folder = write_tasks(by_hand=rows).rename(tmp_path / "a [b] *?")
    assert len(load_tasks(folder=folder)["by_hand"].eval_docs) == len(rows)


def test_line_ends_that_json_allows_inside_a_text_end_no_line(write_tasks):
    raw = '{"query": "a\u2028b\x85c", "choices": ["d", "e"], "gold": 0}'
    task = load_tasks(folder=write_tasks(t=[raw]))["t"]
    assert requests_of(task)[0] == ("a\u2028b\x85c", " d")


@pytest.mark.parametrize(
    ("start", "end"),
    [("", "\n\n"), ("", " \t\n\n"), ("\ufeff", "\r\n\r\n"), ("\n", "")],
)
def test_empty_lines_marks_and_line_ends_of_windows_are_passed_over(
    start, end, write_tasks
):
    folder = write_tasks(t=[])
    lines = [json.dumps(GOOD | {"query": query}) for query in ("first", "second")]
    text = start + end.join(lines) + end if end else f"{start}{lines[0]}\n{lines[1]}"
    (folder / "t.jsonl").write_bytes(text.encode())
    task = load_tasks(folder=folder)["t"]
    assert requests_of(task) == [
        ("first", " a"),
        ("first", " b"),
        ("second", " a"),
        ("second", " b"),
    ]


def test_a_bad_line_behind_empty_ones_has_its_own_number(write_tasks):
    folder = write_tasks(t=["", GOOD, "", "oops"])
    with pytest.raises(ValueError, match=r"t\.jsonl, line 4: no JSON"):
        file_tasks(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"query": "q", ', "no JSON"),
        ("[1]", "query, choices and gold are expected, not list"),
        ({"query": "q", "gold": 0}, "are expected, not query, gold"),
        (GOOD | {"more": 1}, "are expected, not query, choices, gold, more"),
        (
            GOOD | {"query": " \n"},
            r"query must be a text that is not empty, not ' \\n'",
        ),
        (GOOD | {"query": 3}, "query must be a text that is not empty, not 3"),
        (GOOD | {"choices": "ab"}, "choices must be two or more texts"),
        (GOOD | {"choices": ["a"]}, "choices must be two or more texts"),
        (GOOD | {"choices": ["a", " "]}, "choices must be two or more texts"),
        (GOOD | {"gold": 2}, "gold must be an index from 0 to 1, not 2"),
        (GOOD | {"gold": -1}, "gold must be an index from 0 to 1, not -1"),
        (GOOD | {"gold": "1"}, "gold must be an index from 0 to 1, not '1'"),
        (GOOD | {"gold": True}, "gold must be an index from 0 to 1, not True"),
    ],
)
def test_a_bad_line_is_named_with_its_file(line, problem, write_tasks):
    folder = write_tasks(fine=[GOOD], wrong=[GOOD, line, GOOD])
    with pytest.raises(ValueError, match=rf"wrong\.jsonl, line 2: .*{problem}.*gold"):
        file_tasks(folder)


def test_an_empty_file_a_folder_without_files_and_bytes_that_are_no_text(
    tmp_path, write_tasks
):
    folder = write_tasks(empty=[])
    with pytest.raises(ValueError, match=r"empty\.jsonl, line 1: no JSON"):
        file_tasks(folder)
    for nothing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"has no \.jsonl files"):
            file_tasks(nothing)
    (folder / "empty.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"empty\.jsonl cannot be read as UTF-8"):
        file_tasks(folder)


# ---- texts


def test_a_text_is_one_document_as_it_stands(tmp_path):
    text = "  two\n\nparagraphs, {{no}} template  \n"
    path = tmp_path / "a [text].txt"
    path.write_text(text)
    tasks = load_tasks(text=path)
    assert list(tasks) == [path.name]
    assert requests_of(tasks[path.name]) == [(text,)]


def test_the_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffwords\n".encode())
    assert requests_of(load_tasks(text=path)["text.txt"]) == [("words\n",)]
    path.write_bytes("\ufeff\n".encode())
    with pytest.raises(ValueError, match="has no text"):
        text_task(path)


def test_a_text_comes_beside_the_tasks_of_a_folder(tmp_path, rows, write_tasks):
    path = tmp_path / "by_hand.txt"
    path.write_text("text")
    tasks = load_tasks(folder=write_tasks(by_hand=rows), text=path)
    assert list(tasks) == ["by_hand", "by_hand.txt"]


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as UTF-8")):
        text_task(path)
    path.write_text(" \n")
    with pytest.raises(ValueError, match=re.escape(f"{path} has no text")):
        text_task(path)
