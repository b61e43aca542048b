"""Scores of a model in its tasks, their average, and the difference of two models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.api.task import Task
from scipy.stats import bootstrap  # type: ignore[import-untyped]

from mar_snn.harness.model import MarLM
from mar_snn.harness.tasks import MAIN_METRICS

__all__ = ["Interval", "Score", "average", "difference", "evaluate"]

#: Resamples of a bootstrap, and the share of them that its interval holds.
RESAMPLES = 9999
CONFIDENCE = 0.95
#: Resamples drawn at once: 10,000 documents take 20 MB.
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model has in a task.

    Args:
        metric: name of the metric that `value` and `stderr` are of.
        value: a share of the documents, or a perplexity.
        stderr: standard error of `value`; None where lm_eval has none.
        n: documents.
        documents: the score of each, in their order, where `value` is their mean.
        metrics: all metrics of the task: name -> (value, standard error).
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    documents: tuple[float, ...] | None
    metrics: Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference of two models and the limits that the bootstrap gives it."""

    value: float
    low: float
    high: float


def evaluate(
    lm: MarLM,
    tasks: Mapping[str, Task],
    *,
    limit: int | None = None,
    answers: str | Path | None = None,
) -> dict[str, Score]:
    """The score in each task; one run of `lm_eval.evaluate`.

    Args:
        lm: the model.
        tasks: what `mar_snn.harness.tasks.load_tasks` returned.
        limit: documents of a task at most, the first ones.
        answers: folder that keeps each answer from the moment it is given, in a file
            for each model's `fingerprint`. A run that was interrupted at any moment
            goes on from there, and one with another limit or with more tasks asks only
            what has no answer yet.
    """
    for task in tasks.values():
        task.set_fewshot_seed(0)
    cache = None
    if answers is not None:
        cache = CachingLM(lm, str(Path(answers) / f"{lm.fingerprint()}.db"))
    try:
        found = lm_eval.evaluate(cache or lm, {"tasks": dict(tasks)}, limit=limit)
    finally:
        if cache is not None:
            cache.dbdict.close()
            lm.set_cache_hook(CacheHook(None))
    return {
        name: _score(name, found["results"][name], found["samples"][name], lm, task)
        for name, task in tasks.items()
    }


def _score(
    name: str,
    result: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    lm: MarLM,
    task: Task,
) -> Score:
    # lm_eval's keys are "metric,filter" and "metric_stderr,filter"
    metrics: dict[str, tuple[float, float | None]] = {}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        metrics["token_perplexity,none"] = _token_perplexity(samples, lm), None
    for key, value in result.items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr"):
            stderr = result.get(f"{metric}_stderr,{filtered}")
            metrics[key] = value, stderr if isinstance(stderr, float) else None
    main = f"{MAIN_METRICS.get(name)},none"
    key = main if main in metrics else next(iter(metrics))
    metric, _, filtered = key.partition(",")
    scores = [row.get(metric) for row in samples if row["filter"] == filtered]
    value, stderr = metrics[key]
    documents = None
    numbers = [float(score) for score in scores if isinstance(score, int | float)]
    if len(numbers) == len(scores):
        documents = tuple(numbers)
    return Score(
        metric=metric,
        value=value,
        stderr=stderr,
        n=len(scores),
        documents=documents,
        metrics={key.removesuffix(",none"): found for key, found in metrics.items()},
    )


def _token_perplexity(samples: Sequence[Mapping[str, Any]], lm: MarLM) -> float:
    texts = [row["arguments"][0][0] for row in samples]
    tokens = sum(len(lm.tok_encode(text)) for text in texts)
    log_likelihood = sum(row["filtered_resps"][0] for row in samples)
    if not tokens:
        raise ValueError(f"{len(texts)} documents hold no token to be perplexed by")
    with np.errstate(over="ignore"):  # that of a diverged model is infinite
        return float(np.exp(-log_likelihood / tokens))


def average(scores: Mapping[str, Score]) -> tuple[float, float | None] | None:
    """Mean of the tasks that are a mean over documents, and its standard error.

    Every task weighs the same. Tasks are independent, so the standard error of the
    mean of K of them is sqrt(stderr_1² + ... + stderr_K²) / K. None for fewer than two.
    """
    chosen = [score for score in scores.values() if score.documents is not None]
    if len(chosen) < 2:
        return None
    value = math.fsum(score.value for score in chosen) / len(chosen)
    errors = [score.stderr for score in chosen]
    if None in errors:
        return value, None
    return value, math.hypot(*(e for e in errors if e is not None)) / len(chosen)


def difference(
    pairs: Sequence[tuple[Score, Score]], *, seed: int = 0
) -> Interval | None:
    """Mean over tasks of (first - second), with a paired bootstrap interval of 95 %.

    One pair is the difference in a task, several that of the averages. Both models
    answer the same documents, so what is drawn again is the difference in a document:
    within each task as many as it has, with replacement, 9,999 times. The limits are
    the 2.5 and 97.5 % percentiles of the means.

    Args:
        pairs: the scores of two models in one task or more.
        seed: of the draws.

    Returns:
        None where a task has fewer than two documents, or is no mean over documents.

    Raises:
        ValueError: where the two models did not answer the same number of documents.
    """
    gaps = []
    for first, second in pairs:
        if first.documents is None or second.documents is None or first.n < 2:
            return None
        if first.n != second.n:
            raise ValueError(
                f"both models must answer the same documents, got {first.n} and "
                f"{second.n}: use the same tasks and limit"
            )
        gaps.append(np.subtract(first.documents, second.documents))

    def mean(*draws: np.ndarray, axis: int = -1) -> Any:
        return np.mean([draw.mean(axis) for draw in draws], axis=0)

    limits = bootstrap(
        gaps,
        mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Interval(
        value=float(mean(*gaps)), low=float(limits.low), high=float(limits.high)
    )
