"""The tables of docs/gpu.md, from a file that `benchmarks/on_gpu.py` wrote."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    """A heading and tables for each part that has rows."""
    tables = {
        "correctness": _correctness,
        "neurons": _neurons,
        "losses": _losses,
        "scans": _scans,
        "decoding": _decoding,
        "training": _training,
    }
    found = []
    for part, table in tables.items():
        rows = results["parts"].get(part, {"rows": []})["rows"]
        measured = [row for row in rows if row["case"] not in _REMARKS]
        if measured:
            found += [f"### {part.capitalize()}", *table(measured)]
    return "\n\n".join(found)


#: rows that say why there are no more
_REMARKS = ("stopped", "out of time", "error")


def _correctness(rows: list[Row]) -> list[str]:
    right: dict[str, list[bool]] = {}
    for row in rows:
        if row.get("outcome") != "skipped":
            right.setdefault(row.get("backend", row["case"]), []).append(row["ok"])
    lines = [[name, sum(ok), ok.count(False)] for name, ok in right.items()]
    return [_table(["", "right", "wrong"], lines)]


def _neurons(rows: list[Row]) -> list[str]:
    (copy,) = (row["bytes_per_second"] for row in rows if row["case"] == "copy")
    codes = [row for row in rows if row["case"] == "atmn_code"]
    steps = [row for row in rows if row["case"] == "multi_step"]
    small = [row for row in rows if row["case"] == "small code"]
    return [
        f"A copy moves {copy / 1e12:.2f} TB/s, read and written.",
        _pivot(
            codes,
            lambda r: (
                f"`atmn_code`, {_dtype(r)}, T = {r['steps']}, {r['gradient']}, "
                f"{r['direction']}"
            ),
            lambda r: r["name"],
            lambda r: f"{r['ms']:.3g} ms ({100 * r['share_of_copy']:.0f} %)",
        ),
        _pivot(
            steps,
            lambda r: f"{_dtype(r)}, T = {r['steps']}, {r['direction']}",
            lambda r: r["name"],
            lambda r: f"{r['element_steps_per_second'] / 1e9:.0f} G/s",
        ),
        _pivot(
            small,
            lambda r: f"{r['name']}",
            lambda r: r["how"],
            lambda r: f"{1e3 * r['ms']:.0f} µs",
        ),
    ]


def _losses(rows: list[Row]) -> list[str]:
    return [
        _pivot(
            rows,
            lambda r: f"{_dtype(r)}, {r['tokens']:,} tokens, {r['words']:,} words",
            lambda r: r["name"],
            lambda r: f"{r['ms']:.3g} ms, {_gigabytes(r)}",
        )
    ]


def _gigabytes(row: Row) -> str:
    peak = row["peak_bytes"]
    return "" if peak is None else f"{peak / 1e9:.2f} GB"


def _scans(rows: list[Row]) -> list[str]:
    return [
        _pivot(
            rows,
            lambda r: r["name"],
            lambda r: f"{_dtype(r)}, {r['rows']} x {r['tokens']}",
            lambda r: f"{r['forward_ms']:.3g}, {r['ms']:.3g} ms",
        )
    ]


def _decoding(rows: list[Row]) -> list[str]:
    products = [row for row in rows if row["case"] == "product"]
    dense = {
        _product(row): row["ms"] for row in products if row["name"].startswith("dense")
    }
    return [
        _pivot(
            [row for row in products if row["name"] == "event-driven"],
            _product,
            lambda r: f"density {r['density']}",
            lambda r: f"x {r['speedup']:.2f}",
            last={"dense": {key: f"{1e3 * ms:.1f} µs" for key, ms in dense.items()}},
        ),
        _pivot(
            [row for row in rows if row["case"] == "token"],
            lambda r: f"{r['name']}, density {r['density']}",
            lambda r: r["how"],
            lambda r: f"{r['ms']:.2f} ms",
        ),
    ]


def _product(row: Row) -> str:
    return f"{row['weights']}, {row['inputs']} → {row['outputs']}"


def _training(rows: list[Row]) -> list[str]:
    return [
        _pivot(
            rows,
            lambda r: f"{r['model']}, {r['rows']} x {r['tokens']}",
            lambda r: f"{r['kind']}{', compiled' if r['compiled'] else ''}",
            lambda r: f"{r['tokens_per_second']:,.0f} /s, {_gigabytes(r)}",
        )
    ]


def _dtype(row: Row) -> str:
    return str(row["dtype"]).removeprefix("torch.")


def _pivot(
    rows: list[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    cell: Callable[[Row], str],
    last: dict[str, dict[str, str]] | None = None,
) -> str:
    """A line for each `line`, a column for each `column` in the order of the rows."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(column(row), {})[line(row)] = cell(row)
    cells |= last or {}
    lines = dict.fromkeys(line(row) for row in rows)
    return _table(
        ["", *cells],
        [[key, *(column.get(key, "") for column in cells.values())] for key in lines],
    )


def _table(head: list[str], lines: list[list[Any]]) -> str:
    rule = "|---" * len(head) + "|"
    rows = ["| " + " | ".join(map(str, line)) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], rule, *rows[1:]])
