"""EnergyReport: counts, priced, compared, explained and written down."""

import json
from pathlib import Path

from rich.table import Table

from mar_snn.energy.counts import CountedRun
from mar_snn.energy.figures import EnergyFigures
from mar_snn.energy.methodology import check_methodology, write_methodology
from mar_snn.energy.profiles import EnergyProfile, get_profile
from mar_snn.energy.render import group_table, markdown, module_table
from mar_snn.energy.serialise import from_json, to_json

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
    ) -> "EnergyReport":
        """The report of a run.

        Args:
            run: what a SpikeOpCounter counted.
            profile: prices, or the name of a registered profile.
            baseline: "dense", or a report of another model with the same `per`.
            per: "token", "sample" or "run".
            units: number of tokens or samples; tokens default to the number of ids that
                the first embedding looked up.

        Raises:
            ValueError: where the units are unknown, or the baseline cannot be compared.
        """
        profile = get_profile(profile)
        units = _count_units(run, per, units)
        if isinstance(baseline, EnergyReport):
            name = str(baseline.methodology["model"]["class"])
            groups = _comparable_groups(baseline, profile, per)
        elif baseline == "dense":
            name, groups = "dense", {}
            for row in run.rows:
                energy_pj = profile.energy_pj(row.dense_ops) / units
                groups[row.group] = groups.get(row.group, 0.0) + energy_pj
        else:
            raise ValueError(
                f"baseline must be 'dense' or an EnergyReport, got {baseline!r}"
            )
        return cls(
            rows=run.rows,
            firing=run.firing,
            profile=profile,
            per=per,
            units=units,
            baseline=name,
            baseline_groups_pj=groups,
            methodology=write_methodology(
                run, profile, per=per, units=units, baseline=name
            ),
        )

    @classmethod
    def load(cls, path: str | Path) -> "EnergyReport":
        """The report that `to_json` wrote.

        Raises:
            ValueError: for a file of another schema.
        """
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**from_json(document))

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

    def table(self, by: str = "group", *, depth: int | None = None) -> Table:
        """A rich table; `rich.print(report)` prints the one by group.

        Args:
            by: "group", or "module" for one line a module.
            depth: with "module": cut names to so many parts and add up what they share.

        Raises:
            ValueError: without the methodology block.
        """
        check_methodology(self.methodology)
        if by not in ("group", "module"):
            raise ValueError(f"by must be 'group' or 'module', got {by!r}")
        return group_table(self) if by == "group" else module_table(self, depth)

    def __rich__(self) -> Table:
        return self.table()

    def to_markdown(self, path: str | Path) -> None:
        """Write table, methodology and exclusions, ready for an appendix.

        Raises:
            ValueError: without the methodology block.
        """
        check_methodology(self.methodology)
        Path(path).write_text(markdown(self), encoding="utf-8")

    def to_json(self, path: str | Path) -> None:
        """Write the report in the schema of `mar_snn.energy.serialise`.

        Raises:
            ValueError: without the methodology block.
        """
        check_methodology(self.methodology)
        text = json.dumps(to_json(self), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _count_units(run: CountedRun, per: str, units: int | None) -> int:
    if per not in _PER:
        raise ValueError(f"per must be one of {', '.join(_PER)}, got {per!r}")
    if units is None:
        units = {"run": 1, "token": run.tokens, "sample": 0}[per]
    if units < 1:
        raise ValueError(
            f"the number of {per}s is unknown: pass {per}s=..., or per='run'"
        )
    return units


def _comparable_groups(
    baseline: EnergyReport, profile: EnergyProfile, per: str
) -> dict[str, float]:
    """The energies of another report, where they mean the same."""
    if baseline.profile != profile or baseline.per != per:
        raise ValueError(
            f"a baseline needs the same profile and unit: this report has "
            f"{profile.name!r} per {per}, the baseline {baseline.profile.name!r} per "
            f"{baseline.per}"
        )
    return {name: group.energy_pj for name, group in baseline.groups.items()}
