"""Does lm_eval score as one does by hand? Asked on task files.

    python benchmarks/harness.py DIR [--limit 100]

DIR holds .jsonl files; a line is {"query": text, "choices": [text, ...], "gold": int}.
The tiny teacher and its calibrated, untrained spiking student answer the first
questions of each file, once through the harness and once by a plain loop over choices.
Writes benchmarks/results/harness-<device>.json, from which docs/evaluation.md has its
table.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import eq
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.progress import track
from torch.utils.data import DataLoader

from mar_snn.assets import TINY_LLAMBA
from mar_snn.console import show_what_can_be_shown
from mar_snn.distill.data import collate, pack, standard_library_text
from mar_snn.harness import MarLM, compare, evaluate, load_tasks, record
from mar_snn.provenance import machine, versions
from mar_snn.spiking import calibrate, spikify

RESULTS = Path(__file__).parent / "results"
MODELS = ("teacher", "student")
#: of the text that fits the student's thresholds
CALIBRATION = {"texts": 64, "rows": 16, "tokens": 256, "seed": 0}


def main() -> None:
    """Score both models both ways and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # long decays would crawl through denormals
    files = {
        path.stem: [json.loads(line) for line in path.open(encoding="utf-8")]
        for path in sorted(options.folder.glob("*.jsonl"))
    }
    tasks = load_tasks(folder=options.folder)
    lm = MarLM(str(TINY_LLAMBA), dtype="float32", batch_size="auto")
    found, by_hand, scores = {}, {}, {}
    for name in MODELS:
        if name == "student":
            spikify(lm.model)
            calibrate(lm.model, calibration_batches(lm.tokenizer))
        scores[name] = evaluate(lm, tasks, limit=options.limit)
        found[name] = record(name, lm, scores[name])
        for task, rows in files.items():
            rows = track(rows[: options.limit], f"By hand: {name}, {task}")
            right = list(score_by_hand(lm.model, lm.tokenizer, rows))
            metric, of_harness = scores[name][task].metric, scores[name][task].documents
            column = [float(row[metric]) for row in right]
            by_hand.setdefault(name, {})[task] = {
                "acc": fmean(row["acc"] for row in right),
                "acc_norm": fmean(row["acc_norm"] for row in right),
                "same_questions": sum(map(eq, column, of_harness)),
            }
    results = {
        "script": "benchmarks/harness.py",
        "limit": options.limit,
        "questions": {task: len(rows) for task, rows in files.items()},
        "calibration": CALIBRATION,
        "machine": machine(),
        "versions": versions("lm-eval", "scipy"),
        "harness": found,
        "by_hand": by_hand,
        "difference": compare(scores["student"], scores["teacher"]),
    }
    device = "cpu" if results["machine"]["device"].startswith("CPU") else "gpu"
    path = RESULTS / f"harness-{device}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{markdown(results)}\nwrote {path}")


def calibration_batches(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Rows of Python's own library, in batches."""
    texts = standard_library_text()["train"].shuffle(seed=CALIBRATION["seed"])
    texts = texts.select(range(CALIBRATION["texts"]))
    rows = pack(texts, tokenizer, CALIBRATION["tokens"])
    rows = rows.select(range(CALIBRATION["rows"]))
    for batch in DataLoader(rows, 8, collate_fn=collate):
        yield {"input_ids": batch["input_ids"]}


@torch.no_grad()
def score_by_hand(
    model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, bool]]:
    """Whether the best choice of each question is the right one, by both metrics.

    The best has the largest sum of the log-probabilities of its tokens ("acc"), or the
    largest sum for each of its characters ("acc_norm"). One choice at a time, unpadded.
    """
    for row in rows:
        prompt = row["query"].rstrip()
        if re.search("^Question:", prompt, re.MULTILINE):
            prompt += "\nAnswer:"
        start = len(tokenizer(prompt)["input_ids"])
        sums = []
        for choice in row["choices"]:
            ids = tokenizer(f"{prompt} {choice}", return_tensors="pt")["input_ids"]
            log_p = model(ids.to(model.device), use_cache=False).logits.log_softmax(-1)
            tokens = range(start, ids.shape[1])
            sums.append(sum(log_p[0, i - 1, ids[0, i]].item() for i in tokens))
        each = [s / len(choice) for s, choice in zip(sums, row["choices"], strict=True)]
        yield {
            "acc": sums.index(max(sums)) == row["gold"],
            "acc_norm": each.index(max(each)) == row["gold"],
        }


def markdown(results: Mapping[str, Any]) -> str:
    """The table of the documentation."""
    lines = [
        "| task | metric | n | teacher | by hand | student | by hand | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    harness, by_hand, gaps = (
        results[key] for key in ("harness", "by_hand", "difference")
    )
    for task, score in harness["teacher"]["tasks"].items():
        metric = score["metric"]
        cells = [task, metric, str(score["n"])]
        for name in MODELS:
            cells.append(percent(harness[name]["tasks"][task]))
            cells.append(f"{100 * by_hand[name][task][metric]:.1f}")
        lines.append(row_of([*cells, points(gaps["tasks"][task])]))
    means = [percent(harness[name]["average"]) for name in MODELS]
    cells = ["average", "", "", means[0], "", means[1], "", points(gaps["average"])]
    return "\n".join([*lines, row_of(cells)])


def row_of(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def percent(score: Mapping[str, float]) -> str:
    """A share and its standard error."""
    return f"{100 * score['value']:.1f} ± {100 * score['stderr']:.1f}"


def points(gap: Mapping[str, float]) -> str:
    """A difference and its interval, in percentage points."""
    value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
