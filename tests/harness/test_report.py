"""What is written of a model and of two, and how the table shows it."""

import json

import pytest
from rich.console import Console

from mar_snn.harness import Score, compare, evaluate, load_tasks, record, result_table


def share(*documents, stderr=0.1):
    return Score(
        metric="acc",
        value=sum(documents) / len(documents),
        stderr=stderr,
        n=len(documents),
        documents=documents,
        metrics={"acc": (sum(documents) / len(documents), stderr)},
    )


def text(value):
    return Score(
        metric="token_perplexity",
        value=value,
        stderr=None,
        n=1,
        documents=None,
        metrics={"token_perplexity": (value, None)},
    )


@pytest.fixture
def scores():
    """Of two models: alike in task a, a half apart in b, 10 % apart in a text."""
    first = {"a": share(1.0, 0.0), "b": share(1.0, 0.0), "t.txt": text(11.0)}
    second = {"a": share(1.0, 0.0), "b": share(0.0, 0.0), "t.txt": text(10.0)}
    return first, second


def lines(table):
    """The cells of each line of a table."""
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(table)
    rows = capture.get().splitlines()
    return [[c.strip() for c in row.split("│")[1:-1]] for row in rows if "│" in row]


def test_a_record_says_what_the_model_is_and_what_it_has(make_lm, rows, write_tasks):
    lm = make_lm("spiking")
    tasks = load_tasks(folder=write_tasks(one=rows, two=rows))
    found = evaluate(lm, tasks)
    written = json.loads(json.dumps(record("my model", lm, found)))
    assert written["name"] == "my model"
    assert written["spiking"]["time_steps"] == 4
    assert written["dtype"] == "float32"
    assert written["max_length"] == 2048
    assert written["parameters"] == lm.model.num_parameters()
    assert written["fingerprint"] == lm.fingerprint()
    one = written["tasks"]["one"]
    assert one["metrics"]["acc"] == {"value": one["value"], "stderr": one["stderr"]}
    assert (one["metric"], one["n"], one["is_share"]) == ("acc", len(rows), True)
    assert written["average"]["value"] == one["value"]
    # two tasks with the same error e: sqrt(2 e²) / 2
    assert written["average"]["stderr"] == pytest.approx(one["stderr"] / 2**0.5)


def test_a_dense_model_does_not_spike_and_one_task_has_no_average(
    make_lm, rows, write_tasks
):
    lm = make_lm()
    found = evaluate(lm, load_tasks(folder=write_tasks(one=rows)))
    written = record("dense", lm, found)
    assert written["spiking"] is None
    assert written["average"] is None


def test_a_comparison_has_an_interval_for_each_task_and_the_average(scores):
    found = compare(*scores)
    assert found["tasks"]["a"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["tasks"]["b"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert found["tasks"]["t.txt"] is None
    assert found["average"] == {"value": 0.25, "low": 0.0, "high": 0.5}
    assert (found["resamples"], found["confidence"], found["seed"]) == (9999, 0.95, 0)
    assert compare({"a": share(1.0, 0.0)}, {"a": share(0.0, 0.0)})["average"] is None


def test_the_table_of_two_models_has_their_difference(scores):
    first, second = (
        {
            "name": f"folder/{name}",
            "tasks": {
                task: {
                    "metric": score.metric,
                    "value": score.value,
                    "stderr": score.stderr,
                    "n": score.n,
                    "is_share": score.documents is not None,
                }
                for task, score in found.items()
            },
            "average": {"value": value, "stderr": 0.05},
        }
        for name, found, value in zip("xy", scores, (0.5, 0.25), strict=True)
    )
    results = {"model": first, "compare": second, "difference": compare(*scores)}
    assert lines(result_table(results)) == [
        ["a", "acc", "2", "50.0 ± 10.0", "50.0 ± 10.0", "+0.0 [+0.0, +0.0]"],
        ["b", "acc", "2", "50.0 ± 10.0", "0.0 ± 10.0", "+50.0 [+0.0, +100.0]"],
        ["t.txt", "token_perplexity", "1", "11.00", "10.00", "1.100 x"],
        ["average", "", "", "50.0 ± 5.0", "25.0 ± 5.0", "+25.0 [+0.0, +50.0]"],
    ]
    first["tasks"]["a"]["stderr"] = None
    assert lines(result_table({"model": first})) == [
        ["a", "acc", "2", "50.0"],
        ["b", "acc", "2", "50.0 ± 10.0"],
        ["t.txt", "token_perplexity", "1", "11.00"],
        ["average", "", "", "50.0 ± 5.0"],
    ]


def test_names_with_brackets_are_shown_as_they_are():
    console = Console(width=200)
    task = {"metric": "acc", "value": 1.0, "stderr": None, "n": 1, "is_share": True}
    model = {"name": "x/a [bold]", "tasks": {"t [red]": task}, "average": None}
    with console.capture() as capture:
        console.print(result_table({"model": model}))
    assert "a [bold]" in capture.get()
    assert "t [red]" in capture.get()


def test_too_few_documents_for_an_interval_are_said_in_the_table(make_lm, write_tasks):
    row = {"query": "q", "choices": ["a", "b"], "gold": 0}
    tasks = load_tasks(folder=write_tasks(one=[row]))
    lm = make_lm()
    found = evaluate(lm, tasks)
    both = record("x", lm, found)
    results = {"model": both, "compare": both, "difference": compare(found, found)}
    assert lines(result_table(results))[0][-1] == "too few documents"
