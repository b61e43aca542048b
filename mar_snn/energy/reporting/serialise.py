"""A report as JSON values and back, in the schema of `schema.py`."""

import math
from dataclasses import asdict, fields
from typing import Any

from mar_snn.energy.counts import BatchCounts, ByteCounts, Firing, ModuleRow, OpCounts
from mar_snn.energy.reporting.baselines import baselines, break_even
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.memory import traffic
from mar_snn.energy.reporting.prices import EnergyProfile, MemoryTier, Price
from mar_snn.energy.reporting.schema import SCHEMA, check_document
from mar_snn.energy.reporting.statistics import batch_statistics

__all__ = ["finite", "from_json", "to_json"]


def to_json(report: EnergyFigures) -> dict[str, Any]:
    """The report as JSON values, derived figures included."""
    document = {
        "schema": SCHEMA,
        "kind": "modelled",
        "methodology": report.methodology,
        "profiles": [asdict(report.profile)],
        "totals": _totals(report),
        "modules": [_module(row, report) for row in report.rows],
        "groups": _groups(report),
        "phases": {
            phase: {
                "units": report.units_of_phase(phase),
                "energy_pj": part.energy_pj,
                "baseline_pj": part.baseline_pj,
            }
            for phase, part in report.phases.items()
        },
        "firing": {name: _firing(firing) for name, firing in report.firing.items()},
        "against": {
            "name": report.baseline,
            "groups_pj": report.baseline_groups_pj,
            "bytes": report.baseline_bytes,
            "batches_pj": report.baseline_batches_pj,
            "energy_pj": report.baseline_pj,
            "ratio": report.ratio,
        },
        "baselines": [
            asdict(found) | {"profile": report.profile.name, "ratio": found.ratio}
            for found in baselines(report)
        ],
        "traffic": [asdict(line) | {"ratio": line.ratio} for line in traffic(report)],
        "break_even": asdict(break_even(report)),
        "batches": [
            asdict(batch) | {"units": units}
            for batch, units in zip(report.batches, report.batch_units, strict=True)
        ],
        "statistics": {
            name: asdict(found) for name, found in batch_statistics(report).items()
        },
        "measured": report.measured,
    }
    values: dict[str, Any] = finite(document)
    return values


def from_json(document: dict[str, Any]) -> dict[str, Any]:
    """The fields of the report that `to_json` made this of.

    Raises:
        ValueError: for another schema, and for a document that does not keep to it.
    """
    check_document(document)
    totals, against = document["totals"], document["against"]
    return {
        "rows": tuple(_read_module(module) for module in document["modules"]),
        "firing": {
            name: _read_firing(firing) for name, firing in document["firing"].items()
        },
        "profile": _read_profile(document["profiles"][0]),
        "per": totals["per"],
        "units": totals["units"],
        "baseline": against["name"],
        "baseline_groups_pj": against["groups_pj"],
        "baseline_bytes": against["bytes"],
        "baseline_batches_pj": tuple(against["batches_pj"]),
        "batches": tuple(_read_batch(batch) for batch in document["batches"]),
        "batch_units": tuple(batch["units"] for batch in document["batches"]),
        "methodology": document["methodology"],
        "measured": document["measured"],
    }


def finite(value: Any) -> Any:
    """The same with lists for tuples, and None for nan and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- writing


def _totals(report: EnergyFigures) -> dict[str, Any]:
    total = report.total
    by_price = report.profile.energy_by_price_pj(total)
    return {
        "per": report.per,
        "units": report.units,
        "ops": total.as_dict(),
        "moved": report.moved.as_dict(),
        "energy_pj": report.energy_pj,
        "energy_by_price_pj": {k: e / report.units for k, e in by_price.items()},
        "unpriced": report.profile.unpriced(total),
        "firing_rate": report.firing_rate,
        "sign_balance": report.sign_balance,
    }


def _module(row: ModuleRow, report: EnergyFigures) -> dict[str, Any]:
    part = report.part([row], 0.0)
    values = asdict(row)
    values["T"] = values.pop("time_steps")
    return values | {
        "spiking": row.time_steps > 0,
        "energy_pj": part.energy_pj,
        "share": part.share,
    }


def _groups(report: EnergyFigures) -> dict[str, Any]:
    return {
        name: {
            "ops": group.counts.as_dict(),
            "moved": group.moved.as_dict(),
            "energy_pj": group.energy_pj,
            "baseline_pj": group.baseline_pj,
            "share": group.share,
            "columns_touched": group.columns_touched,
        }
        for name, group in report.groups.items()
    }


def _firing(firing: Firing) -> dict[str, Any]:
    return asdict(firing) | {
        "rate": firing.rate,
        "rate_by_step": firing.rate_by_step,
        "p_pos": firing.p_pos,
        "p_neg": firing.p_neg,
        "sign_balance": firing.sign_balance,
    }


# ---- reading


def _read_module(module: dict[str, Any]) -> ModuleRow:
    read = {
        "time_steps": module["T"],
        "ops": OpCounts(**module["ops"]),
        "dense_ops": OpCounts(**module["dense_ops"]),
        "moved": ByteCounts(**module["moved"]),
        "dense_moved": ByteCounts(**module["dense_moved"]),
    }
    names = {field.name for field in fields(ModuleRow)} - read.keys()
    return ModuleRow(**{name: module[name] for name in names}, **read)


def _read_firing(firing: dict[str, Any]) -> Firing:
    names = (field.name for field in fields(Firing))
    values = {name: firing[name] for name in names}
    steps = {name: tuple(values[name]) for name in ("pos", "neg", "elements")}
    return Firing(**values | steps)


def _read_batch(batch: dict[str, Any]) -> BatchCounts:
    return BatchCounts(
        ops=OpCounts(**batch["ops"]),
        dense_ops=OpCounts(**batch["dense_ops"]),
        tokens=batch["tokens"],
        phase=batch["phase"],
    )


def _read_profile(profile: dict[str, Any]) -> EnergyProfile:
    values: dict[str, Any] = {
        key: Price(**value) if isinstance(value, dict) else value
        for key, value in profile.items()
    }
    values["memory"] = tuple(MemoryTier(**tier) for tier in profile["memory"])
    return EnergyProfile(**values)
