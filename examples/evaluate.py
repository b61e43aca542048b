r"""Judge a language model, dense or spiking, with lm-evaluation-harness.

    python examples/evaluate.py outputs/distill_llamba       # the paper's six tasks
    python examples/evaluate.py outputs/distill_llamba --tasks_dir my_tasks \
        --text my_text.txt --compare mar_snn/assets/tiny_llamba
    python examples/evaluate.py cartesia-ai/Llamba-1B \
        --tokenizer meta-llama/Llama-3.2-1B --tasks arc_easy hellaswag --limit 500

MODEL is the folder or hub name of a causal language model. A file of --tasks_dir has
lines {"query": text, "choices": [text, text, ...], "gold": index}; nothing is
downloaded for it. Every answer is kept in the folder of --output: after Ctrl-C, the
same command goes on where it was.
"""

import gc
import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mar_snn.console import show_what_can_be_shown
from mar_snn.harness import (
    MarLM,
    Score,
    compare,
    evaluate,
    load_tasks,
    record,
    result_table,
)
from mar_snn.provenance import machine, versions

console = Console()
DTYPES = ("auto", "float32", "bfloat16", "float16")


def main() -> int:
    """Run; 0 when done, 2 after bad input."""
    options = parse_arguments()
    output = Path(options.output)
    torch.set_flush_denormal(True)  # long decays would crawl through denormals
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with console.status("Reading tasks"):
            tasks = load_tasks(
                options.tasks, folder=options.tasks_dir, text=options.text
            )
        results = {
            "machine": machine(),
            "versions": versions("lm-eval", "scipy"),
            "arguments": vars(options),
        }
        results["model"], scores = judge(options.model, tasks, options)
        if options.compare:
            results["compare"], others = judge(options.compare, tasks, options)
            results["difference"] = compare(scores, others, seed=options.seed)
        write(results, output)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    console.print(result_table(results))
    console.print(f"Results: {output}, answers: {answers(options)}/")
    return 0


def parse_arguments() -> Namespace:
    """The options; leaves with a sentence and exit code 2 for bad ones."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--tasks", nargs="+", metavar="NAME", help="mar6, names of files or of lm_eval")
    add("--tasks_dir", "--tasks-dir", metavar="DIR", help="folder of .jsonl files")
    add("--text", metavar="FILE", help="UTF-8 text whose perplexity is wanted too")
    add("--limit", type=int, help="documents of a task at most")
    add("--compare", metavar="MODEL", help="another model, on the same documents")
    add("--tokenizer", help="folder or hub name; default: that of MODEL")
    add("--batch_size", "--batch-size", default="auto", metavar="auto|N")
    add("--max_length", "--max-length", default=2048, type=int, help="context, tokens")
    add("--dtype", default="float32", choices=DTYPES)
    add("--device", help="default: a GPU where there is one")
    add("--seed", default=0, type=int, help="of the bootstrap")
    add("--output", default="outputs/evaluate/results.json", metavar="FILE")
    options = parser.parse_args()
    for name in ("limit", "max_length"):
        if vars(options)[name] is not None and vars(options)[name] < 1:
            parser.error(f"--{name} must be 1 or more, got {vars(options)[name]}")
    size = options.batch_size
    if size != "auto" and not (size.isdigit() and int(size) > 0):
        parser.error(f"--batch_size must be auto or a number from 1, got {size}")
    return options


def answers(options: Namespace) -> Path:
    """The folder of the answers given so far."""
    return Path(options.output).parent / "answers"


def judge(
    name: str, tasks: dict[str, Any], options: Namespace
) -> tuple[dict[str, Any], dict[str, Score]]:
    """Load a model, ask it everything, and let it go."""
    console.print(name, style="bold", markup=False)
    lm = MarLM(
        name,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch_size,
        max_length=options.max_length,
    )
    scores = evaluate(lm, tasks, limit=options.limit, answers=answers(options))
    found = record(name, lm, scores)
    del lm
    gc.collect()  # the next model needs the memory
    return found, scores


def write(results: dict[str, Any], path: Path) -> None:
    """Write beside the place, then move it there."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    show_what_can_be_shown()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
