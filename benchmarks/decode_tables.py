"""The tables of docs/decoding.md from the results of benchmarks/decode.py."""

from typing import Any

__all__ = [
    "densities_markdown",
    "kernels_markdown",
    "libraries_markdown",
    "tokens_markdown",
]


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
    """A table of docs/decoding.md: bfloat16, times of all ways at one density."""
    names = list(rows[0]["ways"])
    lines = [
        "| projection, density | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for row in rows:
        if (row["weights"], row["threads"]) == ("bfloat16", threads) and (
            row["density"] in (0.5, 0.1)
        ):
            cells = " | ".join(f"{row['ways'][name]['us']:.0f}" for name in names)
            lines.append(f"| {row['shape']}, {row['density']} | {cells} |")
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
    """A table of docs/decoding.md: tokens a second, and ratios to ours and torch's."""
    names = list(rows[0]["models"])
    lines = [
        "| threads | density | " + " | ".join(names) + " |",
        "|---|---" + "|---" * len(names) + "|",
    ]
    for row in rows:
        cells = []
        for name in names:
            cell = f"{row['models'][name]['tokens_per_second']:.1f}"
            if name in row["speedup"]:
                ratios = row["speedup"][name], row["speedup_over_torch"][name]
                cell += f" (x {ratios[0]:.2f}, {ratios[1]:.2f})"
            cells.append(cell)
        lines.append(
            f"| {row['threads']} | {row['density']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)
