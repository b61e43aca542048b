"""The studies of examples/ablation.py, and the tables made of them."""

import csv
import io
import json
import math
from dataclasses import asdict
from types import ModuleType

import pytest

from mar_snn.spiking import SITES, SpikingConfig


@pytest.fixture(scope="module")
def studies(load_example) -> ModuleType:
    return load_example("ablation_studies")


@pytest.fixture(scope="module")
def tables(load_example, studies) -> ModuleType:
    return load_example("ablation_tables")


def distinct(study) -> set[str]:
    return {
        json.dumps([asdict(r.spiking), r.training]) for r in study.rows if r.spiking
    }


def test_the_coder_study_has_every_distinct_combination_once(studies):
    assert len(studies.CODER.rows) == len(distinct(studies.CODER)) == 50
    taus = [row.spiking.tau for row in studies.CODER.rows]
    # five gradients and two fire ratios; both read-outs, but one where they agree
    assert [taus.count(tau) for tau in (0.5, 1.0, 2.0)] == [20, 10, 20]


def test_the_referees_study_has_what_the_referee_asked_for(studies):
    rows = studies.REFEREE.rows
    # 26 to train: one row names the learning rate that the budget has anyway
    assert len(distinct(studies.REFEREE)) == 27
    spiking = [row.spiking for row in rows if row.spiking]
    assert {s.time_steps for s in spiking} == {1, 2, 3, 4, 6}
    assert {s.tau for s in spiking if s.neuron == "atmn"} == {0.5, 1.0, 2.0}
    assert {s.fire_ratio for s in spiking} == {2 / 3, 1.0}
    assert {s.sites for s in spiking if len(s.sites) == 1} == {(s,) for s in SITES}
    losses = [row.training for row in rows if row.training]
    grid = {(t["alpha"], t["beta"]) for t in losses}
    assert grid == {(1.0, 0.0), (0.0, 1.0), (0.7, 0.2), (0.2, 0.7)}
    points = {t.get("feature_points") for t in losses}
    assert points == {None, "pre_norm", "post_norm", "both"}
    assert [row.name for row in rows if row.spiking is None] == ["dense teacher"]


def test_the_rows_rest_on_the_defaults_of_the_package(studies):
    """Where a default changes, the studies say what they trained, and are run again."""
    (row,) = (
        r
        for r in studies.REFEREE.rows
        if (r.section, r.name) == studies.REFEREE.reference
    )
    assert row.spiking == SpikingConfig()


def test_a_study_that_compares_with_nothing_is_refused(studies):
    row = studies.Row(section="a", name="b", spiking=None, against="c")
    with pytest.raises(ValueError, match=r"without \[\('a', 'c'\)\]"):
        studies.Study(title="", rows=(row,), max_steps=1, reference=("a", "b"))
    row = studies.Row(section="a", name="b", spiking=None)
    with pytest.raises(ValueError, match="2 rows with 1 names"):
        studies.Study(title="", rows=(row, row), max_steps=1, reference=("a", "b"))


# ---- the tables


@pytest.fixture
def factorial(studies):
    """Two factors of two levels each."""
    return studies.Study(
        title="Factors",
        max_steps=1,
        reference=("s", "0.5 2/3"),
        factors={"tau": ("tau",), "fire ratio": ("fire_ratio",)},
        rows=tuple(
            studies.Row(
                section="s",
                name=f"{tau} {name}",
                spiking=SpikingConfig(tau=tau, fire_ratio=ratio),
            )
            for tau in (0.5, 1.0)
            for name, ratio in (("2/3", 2 / 3), ("1", 1.0))
        ),
    )


def perplexities(**rows: list[float]) -> dict:
    return {
        ("s", name): [
            {"perplexity": value, "perplexity_ratio": value / 10} for value in values
        ]
        for name, values in rows.items()
    }


def test_a_change_is_taken_within_each_seed(tables, factorial):
    figures = perplexities(
        **{
            "0.5 2/3": [10.0, 20.0, 40.0],
            "0.5 1": [11.0, 22.0, 44.0],
            "1.0 2/3": [9.0, 18.2, 36.8],
            "1.0 1": [11.0, 24.0, 44.0],
        }
    )
    results = tables.collect(factorial, figures)
    one, two, three, four = (row["change"] for row in results["rows"])
    assert (one["mean"], one["std"]) == (0.0, 0.0)
    assert (two["mean"], two["std"]) == pytest.approx((10.0, 0.0), abs=1e-9)
    # -10, -9 and -8 per cent: the factor is the cube root of 0.9 · 0.91 · 0.92
    assert (three["mean"], three["std"]) == pytest.approx((-9.0037, 1.0), abs=1e-4)
    # in logarithms -0.105361, -0.094311 and -0.083382, their deviation 0.010990, and
    # t = 4.30265 with two degrees of freedom: -0.094351 -+ 0.027300
    assert three["ci95"] == pytest.approx([-11.4542, -6.4853], abs=1e-3)
    assert four["mean"] == pytest.approx(100 * (1.1 * 1.2 * 1.1) ** (1 / 3) - 100)
    # tau against 0.5: by seed the factors (0.9, 1), (0.91, 24 / 22), (0.92, 1)
    tau, ratio = results["factors"]
    assert (tau["factor"], tau["level"], tau["against"]) == ("tau", "1", "0.5")
    assert tau["pairs"] == ratio["pairs"] == 2
    product = 0.9 * (0.91 * 24 / 22) * 0.92
    assert tau["change"]["mean"] == pytest.approx(100 * product ** (1 / 6) - 100)
    assert tau["change_alone"]["mean"] == three["mean"]
    assert (ratio["level"], ratio["against"]) == ("1", "2/3")
    assert ratio["change_alone"]["mean"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("values", "expected", "verdict"),
    [
        ([9.0, 9.1, 9.2], "lower", "supported"),
        ([9.0, 9.1, 9.2], "higher", "contradicted"),
        ([11.0, 11.1, 11.2], "higher", "supported"),
        ([11.0, 11.1, 11.2], "lower", "contradicted"),
        ([9.0, 10.5, 9.9], "lower", "undecided"),
        ([9.0], "lower", "one seed decides nothing"),
    ],
)
def test_a_verdict_needs_the_interval_on_one_side_of_zero(
    tables, studies, values, expected, verdict
):
    study = studies.Study(
        title="",
        max_steps=1,
        reference=("s", "base"),
        rows=(
            studies.Row(section="s", name="base", spiking=None),
            studies.Row(
                section="s",
                name="new",
                spiking=None,
                claim="a claim",
                against="base",
                expected=expected,
            ),
        ),
    )
    figures = perplexities(base=[10.0] * len(values), new=values)
    results = tables.collect(study, figures)
    assert "verdict" not in results["rows"][0]
    assert results["rows"][1]["verdict"] == verdict
    _, claims = tables.markdown(results)
    change = 10 * math.prod(values) ** (1 / len(values)) - 100
    assert f"| s: new | a claim | base | {change:+.2f}" in claims
    assert claims.endswith(f" | {verdict} |\n")


def test_the_tables_show_means_and_spreads(tables, factorial):
    names = ["0.5 2/3", "0.5 1", "1.0 2/3", "1.0 1"]
    figures = perplexities(**{name: [10.0, 12.0] for name in names})
    results = tables.collect(factorial, figures)
    text, factors = tables.markdown(results)
    assert text.count("| **s** |") == 1
    # the figures of a run that it does not have are dashes
    assert "| 0.5 1 | - | 11.00 ± 1.41 | 1.100 ± 0.141 | - | - | - | - |" in text
    assert (
        "| tau: 1 | 0.5 | +0.00 ± 0.00 | +0.00 to +0.00 | 2 | +0.00 ± 0.00 |" in factors
    )
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(results))))
    assert [line["perplexity_mean"] for line in lines] == ["11.0"] * 4
    assert lines[0]["change_percent"] == "0.0"


def test_the_picture_has_a_dot_for_each_seed_and_a_bar_for_each_row(tables, factorial):
    names = ["0.5 2/3", "0.5 1", "1.0 2/3", "1.0 1"]
    figures = perplexities(**{name: [10.0, 12.0] for name in names})
    (ax,) = tables.draw(tables.collect(factorial, figures)).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["s", *names]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [pytest.approx([0, 20])] * 4
    bars = [line for line in ax.lines if line.get_marker() == "|"]
    assert [line.get_xdata()[0] for line in bars] == pytest.approx([10] * 4)
