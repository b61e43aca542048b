"""Results of a model, or of two beside each other: JSON data, and a table."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mar_snn.harness.model import MarLM
from mar_snn.harness.scores import (
    CONFIDENCE,
    RESAMPLES,
    Score,
    average,
    difference,
)

__all__ = ["compare", "record", "result_table"]


def record(name: str, lm: MarLM, scores: Mapping[str, Score]) -> dict[str, Any]:
    """What is written of a model: what it is, its score in each task, their average."""
    mean = average(scores)
    return {
        "name": name,
        "spiking": None if lm.spiking is None else asdict(lm.spiking),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "parameters": lm.model.num_parameters(),
        "fingerprint": lm.fingerprint(),
        "max_length": lm.max_length,
        "tasks": {
            task: {
                "metric": score.metric,
                "value": score.value,
                "stderr": score.stderr,
                "n": score.n,
                "is_share": score.documents is not None,
                "metrics": {
                    metric: {"value": value, "stderr": stderr}
                    for metric, (value, stderr) in score.metrics.items()
                },
            }
            for task, score in scores.items()
        },
        "average": mean and {"value": mean[0], "stderr": mean[1]},
    }


def compare(
    first: Mapping[str, Score], second: Mapping[str, Score], *, seed: int = 0
) -> dict[str, Any]:
    """First minus second in each task and on average (`scores.difference`)."""
    pairs = {task: (score, second[task]) for task, score in first.items()}
    gaps = {task: difference([pair], seed=seed) for task, pair in pairs.items()}
    shares = [pair for pair in pairs.values() if pair[0].documents is not None]
    mean = difference(shares, seed=seed) if len(shares) > 1 else None
    return {
        "method": "paired bootstrap, percentiles",
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "seed": seed,
        "tasks": {task: gap and asdict(gap) for task, gap in gaps.items()},
        "average": mean and asdict(mean),
    }


def result_table(results: Mapping[str, Any]) -> Table:
    """Tasks in rows; shares in percent with their standard errors.

    Args:
        results: `record`s under "model" and, with two models, "compare", and then what
            `compare` returned under "difference".
    """
    models = [results[key] for key in ("model", "compare") if key in results]
    gaps = results.get("difference")
    table = Table(title="Zero-shot, in % ± standard error")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("n", justify="right")
    for model in models:
        name = escape(Path(model["name"]).name)
        table.add_column(name, justify="right", overflow="fold")
    if gaps:
        table.add_column(f"difference [{gaps['confidence']:.0%}]", justify="right")
    for task, score in models[0]["tasks"].items():
        found = [model["tasks"][task] for model in models]
        if score["is_share"]:
            cells = [_percent(one) for one in found]
            gap = gaps and _points(gaps["tasks"][task])
        else:
            cells = [f"{one['value']:.2f}" for one in found]
            gap = gaps and f"{found[0]['value'] / found[1]['value']:.3f} x"
        row = [escape(task), score["metric"], str(score["n"]), *cells]
        table.add_row(*row, *([gap] if gap else []))
    if models[0]["average"]:
        cells = [_percent(model["average"]) for model in models]
        gap = gaps and _points(gaps["average"])
        table.add_section()
        table.add_row("average", "", "", *cells, *([gap] if gap else []))
    return table


def _percent(score: Mapping[str, Any]) -> str:
    value, stderr = score["value"], score["stderr"]
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def _points(gap: Mapping[str, float] | None) -> str:
    if gap is None:
        return "too few documents"
    value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
