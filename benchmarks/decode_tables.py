"""The tables of docs/decoding.md and README from the results of benchmarks/decode.py.

    python benchmarks/decode_tables.py

writes them between their lines `<!-- name -->` and `<!-- end of name -->`.
"""

import json
from pathlib import Path
from typing import Any

from mar_snn.console import show_what_can_be_shown

__all__ = [
    "bandwidth_markdown",
    "densities_markdown",
    "filled",
    "kernels_markdown",
    "libraries_markdown",
    "tables",
    "tokens_markdown",
]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "decode-cpu.json"
#: what the models of the results are called in a table
NAMES = {
    "dense, torch": "dense bfloat16, torch",
    "dense, ours": "dense bfloat16, ours",
    "dense, int8": "dense int8, ours",
    "llama.cpp, Q8_0": "dense Q8_0, llama.cpp",
    "spiking, same": "spiking bfloat16",
    "spiking, int8": "spiking int8",
}
#: rows of the tokens that README shows: threads, density
SHOWN = ((1, 0.5), (1, 0.3), (1, 0.2))


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the sections that were measured, by their names in the pages."""
    made = {"machine": machine_markdown(results)}
    if kernels := results.get("kernels"):
        for threads, name in ((1, "one thread"), (2, "two threads")):
            made[name] = kernels_markdown(kernels, threads)
        made["libraries"] = libraries_markdown(kernels)
        made["bandwidth"] = bandwidth_markdown(kernels)
    if densities := results.get("densities"):
        made["densities"] = densities_markdown(densities)
    if tokens := results.get("tokens"):
        made["tokens"] = tokens_markdown(tokens)
        shown = [row for row in tokens if (row["threads"], row["density"]) in SHOWN]
        made["some tokens"] = tokens_markdown(shown)
    if smollm2 := results.get("smollm2"):
        made["smollm2"] = tokens_markdown(smollm2)
    return made


def machine_markdown(results: dict[str, Any]) -> str:
    """What the figures were measured on and with."""
    machine, versions = results["machine"], results["versions"]
    shown = ("torch", "transformers", "llama-cpp-python")
    packages = ", ".join(
        f"{name} {versions[name]}" for name in shown if name in versions
    )
    return f"{machine['device']}, {machine['cores']} cores; {packages}."


def kernels_markdown(rows: list[dict[str, Any]], threads: int) -> str:
    """A table of docs/decoding.md: speedups, and shares of 1 / density."""
    densities = list(dict.fromkeys(row["density"] for row in rows))
    shapes = {row["shape"]: (row["inputs"], row["outputs"]) for row in rows}
    lines = [
        "| weights | projection | " + " | ".join(map(str, densities)) + " |",
        "|---|---" + "|---" * len(densities) + "|",
    ]
    for weights in dict.fromkeys(row["weights"] for row in rows):
        for shape, (inputs, outputs) in shapes.items():
            cells = [
                f"{row['speedup']:.2f} ({row['ideal']:.0%})"
                for row in rows
                if (row["weights"], row["shape"], row["threads"])
                == (weights, shape, threads)
            ]
            name = f"{shape}, {inputs} → {outputs}"
            lines.append(f"| {weights} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def libraries_markdown(rows: list[dict[str, Any]], threads: int = 1) -> str:
    """A table of docs/decoding.md: times of all ways, in 16 and 8 bits."""
    rows = [
        row
        for row in rows
        if row["weights"] != "float32"
        and row["threads"] == threads
        and row["density"] in (0.5, 0.1)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["ways"]))
    lines = [
        "| weights | projection, density | " + " | ".join(names) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for row in rows:
        ways = row["ways"]
        cells = " | ".join(
            f"{ways[name]['us']:.0f}" if name in ways else "" for name in names
        )
        lines.append(
            f"| {row['weights']} | {row['shape']}, {row['density']} | {cells} |"
        )
    return "\n".join(lines)


def bandwidth_markdown(rows: list[dict[str, Any]], density: float = 0.3) -> str:
    """A table of docs/decoding.md: bytes of weights that are read in a second."""
    ways = ["read", "dense, ours", "dense, torch", "event-driven"]
    lines = [
        "| threads | weights | projection | " + " | ".join(ways) + " |",
        "|---" * (3 + len(ways)) + "|",
    ]
    for row in rows:
        if row["density"] == density:
            size = {"bfloat16": 2, "float32": 4, "int8": 1}[row["weights"]]
            read = row["inputs"] * row["outputs"] * size / 1e3  # MB/s of a us: GB/s
            rates = {name: read / q["us"] for name, q in row["ways"].items()}
            rates["event-driven"] *= density
            cells = " | ".join(f"{rates[n]:.1f}" if n in rates else "" for n in ways)
            lines.append(
                f"| {row['threads']} | {row['weights']} | {row['shape']} | {cells} |"
            )
    return "\n".join(lines)


def densities_markdown(rows: list[dict[str, Any]]) -> str:
    """A table of docs/decoding.md."""
    sites = list(rows[0]["densities"])
    lines = [
        "| time steps | perplexity, x dense | " + " | ".join(sites) + " |",
        "|---|---" + "|---" * len(sites) + "|",
    ]
    for row in rows:
        shares = " | ".join(f"{row['densities'][site]:.2f}" for site in sites)
        lines.append(
            f"| {row['time_steps']} | {row['perplexity_ratio']:.2f} | {shares} |"
        )
    return "\n".join(lines)


def tokens_markdown(rows: list[dict[str, Any]]) -> str:
    """Tokens a second; ratios to the fastest dense model as narrow, and quarters."""
    models = rows[0]["models"]
    names = [name for name in NAMES if name in models]
    keys = [key for key in ("threads", "density") if key in rows[0]]
    lines = [
        f"| {' | '.join(keys + [NAMES[name] for name in names])} |",
        "|---" * (len(keys) + len(names)) + "|",
    ]
    for row in rows:
        cells = [str(row[key]) for key in keys]
        for name in names:
            cell = f"{row['models'][name]['tokens_per_second']:.1f}"
            if name in row["speedup"]:
                ratio, low, high = (
                    row[key][name] for key in ("speedup", "speedup_low", "speedup_high")
                )
                cell += f" (x {ratio:.2f}, {low:.2f} to {high:.2f})"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(page: str, made: dict[str, str]) -> str:
    """The page with these tables between their lines, where it has such lines."""
    for name, table in made.items():
        before, begin, rest = page.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if end:
            page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


def main() -> None:
    """Put the tables of the results into the pages."""
    made = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    for page in (ROOT / "docs" / "decoding.md", ROOT / "README.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, made), encoding="utf-8")


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
