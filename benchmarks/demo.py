"""The demo over several seeds: mean and standard deviation of every figure it prints.

    python benchmarks/demo.py --seeds 0 1 2

Writes benchmarks/results/demo-<device>.json, from which the README's table is taken.
Other arguments go to examples/distill_llamba.py.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mar_snn.console import show_what_can_be_shown

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Run the demo once a seed, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="demo", help="first word of the file's name")
    options, rest = parser.parse_known_args()
    runs = []
    for seed in options.seeds:
        folder = ROOT / "outputs" / f"{options.name}-{seed}"
        command = [sys.executable, str(ROOT / "examples" / "distill_llamba.py")]
        arguments = [f"--seed={seed}", f"--output_dir={folder}", *rest]
        subprocess.run([*command, *arguments], check=True)
        runs.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    figures = [flatten(run) for run in runs]
    results = {
        "script": "benchmarks/demo.py",
        "arguments": rest,
        "seeds": options.seeds,
        **{key: runs[0][key] for key in ("machine", "versions", "steps")},
        "mean": {k: statistics.fmean(f[k] for f in figures) for k in figures[0]},
        "std": {k: statistics.stdev(f[k] for f in figures) for k in figures[0]}
        if len(runs) > 1
        else None,
        "runs": figures,
    }
    device = "cpu" if runs[0]["machine"]["device"].startswith("CPU") else "gpu"
    path = ROOT / "benchmarks" / "results" / f"{options.name}-{device}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def flatten(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of one run; those of the perplexities as "perplexity.<model>"."""
    names = (
        "perplexity_ratio",
        "firing_rate",
        "sign_balance",
        "synops_per_token",
        "energy_ratio",
        "energy_ratio_without_lm_head",
        "seconds",
    )
    perplexities = {f"perplexity.{k}": v for k, v in metrics["perplexity"].items()}
    ratios = {
        f"energy_ratios.{name}.{end}": ratio
        for name, span in metrics["energy_ratios"].items()
        for end, ratio in zip(("low", "high"), span, strict=True)
    }
    return perplexities | {name: metrics[name] for name in names} | ratios


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
