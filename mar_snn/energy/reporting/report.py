"""EnergyReport: counts, priced, compared, explained and written down."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group

from mar_snn.console import Showable
from mar_snn.energy.counts import ByteCounts, CountedRun
from mar_snn.energy.reporting.baselines import (
    Baseline,
    BreakEven,
    baselines,
    break_even,
)
from mar_snn.energy.reporting.compare import (
    EnergyComparison,
    PooledEnergy,
    compare_reports,
    pool_reports,
)
from mar_snn.energy.reporting.exports import csv_rows, latex
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.markdown import markdown
from mar_snn.energy.reporting.memory import Traffic, traffic
from mar_snn.energy.reporting.methodology import (
    check_methodology,
    count_tokens,
    write_methodology,
)
from mar_snn.energy.reporting.profiles import EnergyProfile, get_profile
from mar_snn.energy.reporting.render import console
from mar_snn.energy.reporting.serialise import finite, from_json, to_json
from mar_snn.energy.reporting.statistics import (
    Statistic,
    batch_statistics,
    units_of_batches,
)

__all__ = ["EnergyReport"]

_PER = ("token", "sample", "run")


class EnergyReport(EnergyFigures):
    """Modelled energy of a run; `SpikeOpCounter.report` makes one.

    Energies are picojoules per unit (`per`: a token, a sample, the run); counts are
    those of the whole run.
    """

    @classmethod
    def of(
        cls,
        run: CountedRun,
        profile: str | EnergyProfile,
        *,
        baseline: "str | EnergyReport" = "dense",
        per: str = "token",
        units: int | None = None,
        workload: Mapping[str, Any] | None = None,
        measured: Mapping[str, Any] | None = None,
    ) -> "EnergyReport":
        """The report of a run.

        Args:
            run: what a SpikeOpCounter counted.
            profile: prices, or the name of a registered profile.
            baseline: "dense", or a report of another model with the same `per`.
            per: "token", "sample" or "run".
            units: number of tokens or samples; tokens default to the number of ids that
                the first embedding looked up.
            workload: what the counter cannot know, for the methodology block: model,
                model_revision, dataset, split, dataset_revision, samples, batch,
                context, seed, and whatever else the reader should be told.
            measured: what a meter read, as a dictionary with its `source`; it is
                printed beside the modelled figures and never divided by one.

        Raises:
            ValueError: where the units are unknown, the baseline cannot be compared, or
                the workload or the measurement cannot be written down.
        """
        profile = get_profile(profile)
        units = _count_units(run, per, units)
        if isinstance(baseline, EnergyReport):
            name = str(baseline.methodology["model"]["class"])
            against = _against_report(baseline, run, profile, per)
        elif baseline == "dense":
            name, against = "dense", _against_dense(run, profile, per, units)
        else:
            raise ValueError(
                f"baseline must be 'dense' or an EnergyReport, got {baseline!r}"
            )
        methodology = write_methodology(
            run, profile, per=per, units=units, baseline=name, workload=workload
        )
        if measured is not None:
            measured = _check_measured(measured)
            methodology["hardware"] = f"measured apart, source {measured['source']}"
        return cls(
            rows=run.rows,
            firing=run.firing,
            profile=profile,
            per=per,
            units=units,
            baseline=name,
            methodology=methodology,
            batches=run.batches,
            batch_units=units_of_batches(run, per, units),
            measured=measured,
            **against,
        )

    @classmethod
    def load(cls, path: str | Path) -> "EnergyReport":
        """The report that `to_json` wrote.

        Raises:
            ValueError: for a file of another schema, or one that does not keep to it.
        """
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**from_json(document))

    # ---- figures

    @property
    def traffic(self) -> list[Traffic]:
        """The energy together with what has to be moved, by assumption and memory."""
        return traffic(self)

    @property
    def baselines(self) -> list[Baseline]:
        """Dense, quantised dense of matched information, zero-skipping dense."""
        return baselines(self)

    @property
    def break_even(self) -> BreakEven:
        """Spikes a synapse, and how few they would have to be."""
        return break_even(self)

    @property
    def ratios(self) -> dict[str, tuple[float, float]]:
        """Every ratio of the report by name, (lowest, highest), priced ones only.

        With traffic the name is "<what is moved>, <memory>", such as "weights once a
        call, dram"; without, that of the baseline.
        """
        plain = {line.name: line.ratio for line in self.baselines}
        moved = {
            f"{line.assumption}, {line.memory}": line.ratio for line in self.traffic
        }
        return {
            name: span for name, span in (plain | moved).items() if span is not None
        }

    @property
    def statistics(self) -> dict[str, Statistic]:
        """energy_pj, baseline_pj and ratio over the batches."""
        return batch_statistics(self)

    @staticmethod
    def compare(a: "EnergyReport", b: "EnergyReport") -> EnergyComparison:
        """The differences from `a` to `b` by group.

        Raises:
            ValueError: for reports with unlike profiles, units or counting rules.
        """
        return compare_reports(a, b)

    @staticmethod
    def pooled(reports: "Sequence[EnergyReport]") -> PooledEnergy:
        """Mean, standard deviation and 95 % interval over runs, such as seeds.

        Raises:
            ValueError: for fewer than two reports, and for unlike ones.
        """
        return pool_reports(reports)

    def assert_complete(self) -> None:
        """Raise unless every operation of the run had a rule.

        Raises:
            ValueError: naming those that had none.
        """
        check_methodology(self.methodology)
        uncounted = self.methodology["coverage"]["uncounted"]
        if uncounted:
            listed = ", ".join(f"{name} ({n})" for name, n in sorted(uncounted.items()))
            raise ValueError(
                f"no rule prices {listed}; add one with register_op_rule or "
                "register_module_rule"
            )

    # ---- renderings; each raises a ValueError without the methodology block

    def table(self, by: str = "group", *, depth: int | None = None) -> Group:
        """Everything for a console; `rich.print(report)` prints it by group.

        Args:
            by: "group", or "module" for one line a module.
            depth: with "module": cut names to so many parts and add up what they share.

        Raises:
            ValueError: without the methodology block.
        """
        check_methodology(self.methodology)
        return console(self, by, depth)

    def __rich__(self) -> Showable:
        return Showable(self.table())

    def to_markdown(self, path: str | Path) -> None:
        """Write every table, methodology and exclusions, ready for an appendix."""
        check_methodology(self.methodology)
        _write(path, markdown(self))

    def to_latex(self, path: str | Path) -> None:
        """Write a table for LaTeX with booktabs, its caveats in the caption."""
        check_methodology(self.methodology)
        _write(path, latex(self))

    def to_csv(self, path: str | Path) -> None:
        """Write one line a module: counts and bytes of the run, energy of a unit."""
        check_methodology(self.methodology)
        _write(path, csv_rows(self))

    def to_json(self, path: str | Path) -> None:
        """Write the report in the schema of `mar_snn.energy.reporting.schema`."""
        check_methodology(self.methodology)
        _write(path, json.dumps(to_json(self), indent=1, allow_nan=False) + "\n")


def _write(path: str | Path, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def _count_units(run: CountedRun, per: str, units: int | None) -> int:
    if per not in _PER:
        raise ValueError(f"per must be one of {', '.join(_PER)}, got {per!r}")
    if units is None:
        units = {"run": 1, "token": count_tokens(run), "sample": 0}[per]
    if units < 1:
        raise ValueError(
            f"the number of {per}s is unknown: pass {per}s=..., or per='run'"
        )
    return units


def _against_dense(
    run: CountedRun, profile: EnergyProfile, per: str, units: int
) -> dict[str, Any]:
    """The same run in the dense model, per unit."""
    groups: dict[str, float] = {}
    for row in run.rows:
        energy_pj = profile.energy_pj(row.dense_ops) / units
        groups[row.group] = groups.get(row.group, 0.0) + energy_pj
    moved = ByteCounts.sum(row.dense_moved for row in run.rows)
    shares = zip(run.batches, units_of_batches(run, per, units), strict=True)
    return {
        "baseline_groups_pj": groups,
        "baseline_bytes": {k: count / units for k, count in moved.as_dict().items()},
        "baseline_batches_pj": tuple(
            profile.energy_pj(batch.dense_ops) / share for batch, share in shares
        ),
    }


def _against_report(
    baseline: EnergyReport, run: CountedRun, profile: EnergyProfile, per: str
) -> dict[str, Any]:
    """The figures of another report, where they mean the same."""
    if baseline.profile != profile or baseline.per != per:
        raise ValueError(
            f"a baseline needs the same profile and unit: this report has "
            f"{profile.name!r} per {per}, the baseline {baseline.profile.name!r} per "
            f"{baseline.per}"
        )
    # batches are compared in pairs only where they held equally many tokens
    paired = [b.tokens for b in baseline.batches] == [b.tokens for b in run.batches]
    shares = zip(baseline.batches, baseline.batch_units, strict=True)
    moved = baseline.moved.as_dict()
    return {
        "baseline_groups_pj": {
            name: group.energy_pj for name, group in baseline.groups.items()
        },
        "baseline_bytes": {k: count / baseline.units for k, count in moved.items()},
        "baseline_batches_pj": tuple(
            profile.energy_pj(batch.ops) / share for batch, share in shares
        )
        if paired
        else (),
    }


def _check_measured(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement in values that JSON can hold."""
    if "source" not in measured:
        raise ValueError(
            "measured needs the key 'source', the sensor that was read; got "
            f"{', '.join(map(str, measured)) or 'an empty dictionary'}"
        )
    try:
        told: dict[str, Any] = json.loads(json.dumps(finite(dict(measured))))
    except TypeError as error:
        raise ValueError(
            f"measured must hold numbers, words and lists of them: {error}"
        ) from error
    return told
