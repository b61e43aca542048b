"""What counting costs, as it was measured."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks/results/energy_overhead-cpu.json"
DOCS = Path(__file__).parents[2] / "docs" / "energy.md"


def ratios() -> dict[tuple[str, int], float]:
    """(model, tokens) -> time of a counted pass over that of a plain one."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    return {
        (row["model"], row["batch"] * row["tokens"]): row["counted"]["ratio"]
        for row in rows
    }


def test_counting_the_tiny_llamba_takes_at_most_two_and_a_half_passes():
    for model in ("dense", "spiking"):
        assert 1 < ratios()[model, 8 * 128] <= 2.5


def test_the_documentation_has_the_measured_ratios():
    found = ratios()
    words = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert (
        f"by {found['dense', 1024]:.1f} (dense) and {found['spiking', 1024]:.1f} "
        "(spiking)" in words
    )
    assert f"by {found['dense', 1]:.1f} and {found['spiking', 1]:.1f}" in words
