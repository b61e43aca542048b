"""What a model is asked: the paper's six tasks, tasks from files, and a text."""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

__all__ = [
    "MAIN_METRICS",
    "MAR6",
    "file_tasks",
    "load_tasks",
    "task_manager",
    "text_task",
]

#: The six tasks of MAR (arXiv 2601.21503), all zero-shot, by their names in lm_eval.
MAR6 = ("piqa", "boolq", "winogrande", "hellaswag", "arc_easy", "arc_challenge")

#: Tasks judged by the log-likelihood for each character of an answer; the others by
#: that of the answer. The paper names no metrics: this is how the Mamba paper
#: (arXiv 2312.00752) reports these tasks, and with it those who build on it.
MAIN_METRICS = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm"}

#: UTF-8, whose byte order mark is no part of the text
_ENCODING = "utf-8-sig"
#: keys of a line of a task file
_LAYOUT = '{"query": text, "choices": [text, text, ...], "gold": index}'


def load_tasks(
    names: Iterable[str] | None = None,
    *,
    folder: str | Path | None = None,
    text: str | Path | None = None,
) -> dict[str, Task]:
    """Tasks by their names, their data loaded.

    Args:
        names: of files in `folder` (without .jsonl), else of tasks, tags and groups of
            lm_eval; "mar6" stands for the six. By default all of the folder; without a
            folder the six, or with a text nothing else.
        folder: where task files are (`file_tasks`). lm_eval's own tasks are downloaded
            by `datasets`; these are not.
        text: a file whose perplexity is asked for (`text_task`).

    Raises:
        ValueError: for a name that nobody knows, a bad file, or data that cannot be
            had.
    """
    files = file_tasks(folder) if folder is not None else {}
    if names is None:
        names = files or (MAR6 if text is None else ())
    wanted: dict[str, Any] = {}
    for name in names:
        for task in MAR6 if name == "mar6" else (name,):
            wanted[task] = files.get(task, task)
    manager = task_manager(everything=not wanted.keys() <= files.keys())
    unknown = wanted.keys() - files.keys() - manager.task_index.keys()
    if unknown:
        name = min(unknown)
        close = get_close_matches(name, [*files, *manager.all_tasks], 3)
        raise ValueError(
            f"there is no task {name!r}; close to it are {', '.join(close) or 'none'} "
            "(`lm_eval ls tasks` lists all)"
        )
    if text is not None:
        config = text_task(text)
        wanted[config["task"]] = config
    if not wanted:
        raise ValueError("no tasks: name some, or a folder of task files, or a text")
    tasks: dict[str, Task] = {}
    for name, task in wanted.items():
        tasks |= _load(manager, name, task)
    return tasks


@cache
def task_manager(*, everything: bool) -> TaskManager:
    """lm_eval's loader of tasks; with everything, it has read its 14,000 descriptions.

    That takes about ten seconds, so it is done once, and only where one is wanted.
    """
    return TaskManager(include_defaults=everything)


def _load(manager: TaskManager, name: str, task: str | dict[str, Any]) -> Any:
    try:
        return manager.load(task)["tasks"]
    except Exception as error:  # the hub and its readers raise one class for each cause
        way_out = (
            "" if isinstance(task, dict) else "; without a network, give it as a file"
        )
        raise ValueError(f"task {name} cannot be loaded: {error}{way_out}") from error


def file_tasks(folder: str | Path) -> dict[str, dict[str, Any]]:
    """A multiple-choice task of lm_eval for each .jsonl file, by the file's name.

    A line is `{"query": text, "choices": [text, text, ...], "gold": index}`; empty ones
    are passed over. What the model continues is the query without spaces and line ends
    behind it; where a line of it begins with "Question:", "Answer:" follows on its own
    line, as in lm_eval's own prompts for such tasks. A choice is put behind one space.

    Raises:
        ValueError: for a folder without such files, or a line of another layout, with
            file and line.
    """
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{folder} has no .jsonl files")
    for path in paths:
        _check(path)
    return {path.stem: _multiple_choice(path) for path in paths}


def _check(path: Path) -> None:
    # not splitlines(): JSON may hold its other line ends, such as U+2028
    lines = enumerate(_read(path).split("\n"), 1)
    rows = [(number, line) for number, line in lines if line.strip(" \t")]
    for number, line in rows or [(1, "")]:
        if problem := _problem(line):
            raise ValueError(
                f"{path}, line {number}: {problem}; a line must be {_LAYOUT}"
            )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding=_ENCODING)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _problem(line: str) -> str | None:
    """What is wrong with a line of a task file."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON ({error})"
    if not isinstance(row, dict) or row.keys() != {"query", "choices", "gold"}:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        return f"query, choices and gold are expected, not {found or 'nothing'}"
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if not isinstance(query, str) or not query.strip():
        return f"query must be a text that is not empty, not {query!r}"
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        return f"choices must be two or more texts that are not empty, not {choices!r}"
    if type(gold) is not int or not 0 <= gold < len(choices):
        return f"gold must be an index from 0 to {len(choices) - 1}, not {gold!r}"
    return None


def _prompt(row: Mapping[str, Any]) -> str:
    query = row["query"].rstrip()
    asks = re.search("^Question:", query, re.MULTILINE)
    return f"{query}\nAnswer:" if asks else query


def _multiple_choice(path: Path) -> dict[str, Any]:
    return {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": escape(str(path.resolve()))}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": _prompt,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }


def text_task(path: str | Path) -> dict[str, Any]:
    """A perplexity task of lm_eval: the file as one document, by the file's name.

    lm_eval's rolling log-likelihood predicts each token once. The first window of
    `max_length` tokens follows an end-of-text (or begin-of-text) token, each later one
    the last token of the window before; the last window is filled up with context.

    Raises:
        ValueError: for a file that is no UTF-8 text, or an empty one.
    """
    path = Path(path)
    if not _read(path).strip():
        raise ValueError(f"{path} has no text")
    return {
        "task": path.name,
        "dataset_path": "text",
        "dataset_kwargs": {
            "data_files": {"test": escape(str(path.resolve()))},
            "encoding": _ENCODING,
            "sample_by": "document",
        },
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {
                "metric": metric,
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
            for metric in ("word_perplexity", "byte_perplexity")
        ],
    }
