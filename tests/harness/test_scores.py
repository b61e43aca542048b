"""Scores: those of a plain loop; averages and intervals worked by hand."""

import importlib.util
import math
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from datasets import Dataset

from mar_snn.distill.evaluation import perplexity
from mar_snn.harness import MarLM, Score, average, difference, evaluate, load_tasks
from mar_snn.harness.scores import _token_perplexity
from tests.seed import SEED

KINDS = ("dense", "spiking")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "harness.py"


@pytest.fixture(scope="module")
def score_by_hand():
    """The plain loop of benchmarks/harness.py, which knows nothing of lm_eval."""
    spec = importlib.util.spec_from_file_location("benchmark_of_harness", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark.score_by_hand


def share(*documents, value=None, stderr=None):
    """A score that is the mean of its documents."""
    return Score(
        metric="acc",
        value=float(fmean(documents)) if value is None else value,
        stderr=stderr,
        n=len(documents),
        documents=tuple(map(float, documents)),
        metrics={},
    )


PERPLEXITY = Score(
    metric="token_perplexity", value=9.0, stderr=None, n=1, documents=None, metrics={}
)


# ---- evaluate


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_is_that_of_a_plain_loop(
    kind, batch_size, make_lm, rows, write_tasks, score_by_hand
):
    lm = make_lm(kind, batch_size=batch_size)
    folder = write_tasks(arc_challenge=rows, other=rows)
    scores = evaluate(lm, load_tasks(folder=folder))
    by_hand = list(score_by_hand(lm.model, lm.tokenizer, rows))
    for name, metric in (("arc_challenge", "acc_norm"), ("other", "acc")):
        score, right = scores[name], [float(row[metric]) for row in by_hand]
        assert score.metric == metric
        assert score.documents == tuple(right)
        assert score.value == fmean(right)
        assert score.stderr == pytest.approx(stdev(right) / math.sqrt(len(right)))
        assert score.n == len(rows)
    assert scores["other"].metrics == scores["arc_challenge"].metrics
    assert set(scores["other"].metrics) == {"acc", "acc_norm"}
    # both answers occur, or the comparison would say nothing
    assert 0 < sum(row["acc"] for row in by_hand) < len(rows)


def test_a_limit_takes_the_first_documents(make_lm, rows, write_tasks):
    lm, tasks = make_lm(), load_tasks(folder=write_tasks(by_hand=rows))
    everything = evaluate(lm, tasks)["by_hand"]
    some = evaluate(lm, tasks, limit=3)["by_hand"]
    assert some.documents == everything.documents[:3]
    assert some.n == 3


@pytest.mark.parametrize("kind", KINDS)
def test_perplexity_of_a_short_text_is_that_of_one_packed_row(kind, make_lm, tmp_path):
    lm = make_lm(kind)
    text = "some words,\nand  bytes: ü\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    score = evaluate(lm, load_tasks(text=tmp_path / "text.txt"))["text.txt"]
    row = [lm.eot_token_id, *lm.tok_encode(text)]
    packed = perplexity(lm.model, Dataset.from_list([{"input_ids": row}]))
    assert score.metric == "token_perplexity"
    assert score.value == pytest.approx(packed, rel=1e-5)
    assert score.documents is None
    assert score.stderr is None
    # a byte is a token here, ü two of them; lm_eval counts the end as a word
    nats = len(row[1:]) * math.log(score.value)
    assert len(row[1:]) == len(text.encode()) == len(text) + 1
    byte, word = (score.metrics[f"{unit}_perplexity"][0] for unit in ("byte", "word"))
    assert byte == pytest.approx(score.value, rel=1e-5)
    assert math.log(word) == pytest.approx(nats / 6, rel=1e-5)


def test_the_perplexity_of_a_diverged_model_is_infinite():
    lm = MarLM.__new__(MarLM)
    lm.tok_encode = list  # a token for each letter
    text = {"arguments": [("abcd",)], "filtered_resps": [-1e4]}
    assert _token_perplexity([text], lm) == math.inf
    assert math.isnan(_token_perplexity([text | {"filtered_resps": [math.nan]}], lm))
    assert _token_perplexity([text | {"filtered_resps": [-4.0]}], lm) == math.e
    with pytest.raises(ValueError, match="1 documents hold no token to be perplexed"):
        _token_perplexity([text | {"arguments": [("",)]}], lm)


def test_perplexity_of_a_long_text_is_that_of_rows_which_share_a_token(
    make_lm, tmp_path
):
    lm = make_lm(max_length=8)
    text = "three windows, of eight."
    (tmp_path / "text.txt").write_text(text)
    tokens = [lm.eot_token_id, *lm.tok_encode(text)]
    assert len(tokens) == 25
    rows = [{"input_ids": tokens[start : start + 9]} for start in (0, 8, 16)]
    score = evaluate(lm, load_tasks(text=tmp_path / "text.txt"))["text.txt"]
    packed = perplexity(lm.model, Dataset.from_list(rows))
    assert score.value == pytest.approx(packed, rel=1e-5)


# ---- answers that are kept


class StoppedError(Exception):
    """Instead of Ctrl-C."""


def count_calls(lm, monkeypatch, *, stop_at=None):
    """Rows that the model is given, call by call; stop before the call `stop_at`."""
    calls = []
    call = MarLM._model_call

    def counted(self, inps, *args, **kwargs):
        if len(calls) == stop_at:
            raise StoppedError
        calls.append(len(inps))
        return call(self, inps, *args, **kwargs)

    monkeypatch.setattr(MarLM, "_model_call", counted)
    return calls


def test_a_run_that_was_stopped_asks_only_what_has_no_answer(
    make_lm, rows, write_tasks, tmp_path, monkeypatch
):
    lm, tasks = make_lm(batch_size=2), load_tasks(folder=write_tasks(by_hand=rows))
    whole = evaluate(lm, tasks)
    with monkeypatch.context() as patch:
        first = count_calls(lm, patch, stop_at=3)
        with pytest.raises(StoppedError):
            evaluate(lm, tasks, answers=tmp_path / "kept")
    with monkeypatch.context() as patch:
        rest = count_calls(lm, patch)
        resumed = evaluate(make_lm(batch_size=2), tasks, answers=tmp_path / "kept")
        assert sum(first) == 6
        assert sum(first) + sum(rest) == sum(len(row["choices"]) for row in rows)
        assert resumed == whole
        rest.clear()
        assert evaluate(make_lm(), tasks, limit=4, answers=tmp_path / "kept")
        assert rest == []


def test_answers_of_another_model_are_not_taken(
    make_lm, rows, write_tasks, tmp_path, monkeypatch
):
    tasks = load_tasks(folder=write_tasks(by_hand=rows))
    evaluate(make_lm("dense"), tasks, answers=tmp_path)
    calls = count_calls(make_lm, monkeypatch)
    evaluate(make_lm("spiking"), tasks, answers=tmp_path)
    assert sum(calls) == sum(len(row["choices"]) for row in rows)


def test_without_a_folder_nothing_is_kept(make_lm, rows, write_tasks, monkeypatch):
    lm, tasks = make_lm(), load_tasks(folder=write_tasks(by_hand=rows))
    calls = count_calls(lm, monkeypatch)
    evaluate(lm, tasks)
    once = sum(calls)
    evaluate(lm, tasks)
    assert sum(calls) == 2 * once > 0


# ---- average


def test_the_average_weighs_tasks_alike_and_adds_their_errors_in_squares():
    scores = {
        "a": share(1, 1, 0, 0, value=0.5, stderr=0.03),
        "b": share(1, value=1.0, stderr=0.04),
        "text": PERPLEXITY,
    }
    # sqrt(0.03² + 0.04²) / 2
    assert average(scores) == pytest.approx((0.75, 0.025))


def test_one_task_has_no_average_and_unknown_errors_stay_unknown():
    assert average({"a": share(1, 0), "text": PERPLEXITY}) is None
    assert average({"a": share(1, 0), "b": share(0, 0, stderr=0.1)}) == (0.25, None)


# ---- difference


def test_the_interval_of_a_difference_is_that_of_all_resamples():
    # two documents differ by 1 and 0: the mean of a resample of both is 0 in a quarter,
    # 1/2 in a half and 1 in a quarter of all
    gap = difference([(share(1, 1), share(0, 1))])
    assert (gap.value, gap.low, gap.high) == (0.5, 0.0, 1.0)


def test_the_interval_is_of_pairs_not_of_two_independent_samples():
    right = [i % 2 for i in range(100)]
    gap = difference([(share(*right), share(*right))])
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_the_limits_are_those_of_the_binomial_distribution():
    # 400 documents, 100 of which the first alone has right: resampled means are
    # Binomial(400, 1/4) / 400, whose 2.5 % and 97.5 % quantiles are 83 and 117
    gap = difference([(share(*[1] * 100, *[0] * 300), share(*[0] * 400))])
    assert gap.value == 0.25
    assert gap.low == pytest.approx(83 / 400, abs=1 / 400)
    assert gap.high == pytest.approx(117 / 400, abs=1 / 400)


def test_the_average_draws_within_each_task_and_weighs_tasks_alike():
    # a task that never differs halves the difference of the other, and its interval;
    # drawn from one pot, 400 documents of 800 would give it another width
    first = share(*[1] * 100, *[0] * 300)
    second = share(*[0] * 400)
    one = difference([(first, second)])
    gap = difference([(first, second), (share(1, 0), share(1, 0))])
    assert gap.value == one.value / 2
    assert gap.low == pytest.approx(one.low / 2, abs=1 / 800)
    assert gap.high == pytest.approx(one.high / 2, abs=1 / 800)


def test_a_seed_gives_the_same_interval_again():
    rng = np.random.default_rng(SEED)
    pairs = [(share(*rng.random(50)), share(*rng.random(50)))]
    assert difference(pairs, seed=3) == difference(pairs, seed=3)
    assert difference(pairs, seed=3) != difference(pairs, seed=4)


def test_one_document_or_a_perplexity_has_no_interval():
    assert difference([(share(1), share(0))]) is None
    assert difference([(PERPLEXITY, PERPLEXITY)]) is None


def test_other_documents_are_refused():
    with pytest.raises(ValueError, match="same documents, got 2 and 3"):
        difference([(share(1, 0), share(1, 0, 1))])
