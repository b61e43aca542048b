"""A report as JSON and back, in the schema `mar-snn/energy-report/1`.

Keys carry their unit (`_pj`). `ops` are counts of the whole run, energies are per unit
(`totals.per`, `totals.units`). What is not a finite number is null.
"""

import math
from dataclasses import asdict
from typing import Any

from mar_snn.energy.counts import Firing, ModuleRow, OpCounts
from mar_snn.energy.figures import EnergyFigures
from mar_snn.energy.profiles import EnergyProfile, Price

__all__ = ["SCHEMA", "from_json", "to_json"]

SCHEMA = "mar-snn/energy-report/1"


def to_json(report: EnergyFigures) -> dict[str, Any]:
    """The report as JSON values, derived figures included."""
    baseline = {
        "name": report.baseline,
        "profile": report.profile.name,
        "energy_pj": report.baseline_pj,
        "groups_pj": report.baseline_groups_pj,
        "ratio": report.ratio,
    }
    document = {
        "schema": SCHEMA,
        "kind": "modelled",
        "methodology": report.methodology,
        "profiles": [asdict(report.profile)],
        "totals": _totals(report),
        "modules": [_module(row, report) for row in report.rows],
        "groups": _groups(report),
        "firing": {name: _firing(firing) for name, firing in report.firing.items()},
        "baselines": [baseline],
        "measured": None,
    }
    finite: dict[str, Any] = _finite(document)
    return finite


def from_json(document: dict[str, Any]) -> dict[str, Any]:
    """The fields of the report that `to_json` made this of.

    Raises:
        ValueError: for another schema.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"expected a report of schema {SCHEMA!r}, got {document.get('schema')!r}"
        )
    totals, (baseline,) = document["totals"], document["baselines"]
    return {
        "rows": tuple(_read_module(module) for module in document["modules"]),
        "firing": {
            name: Firing(
                pos=tuple(firing["pos"]),
                neg=tuple(firing["neg"]),
                elements=tuple(firing["elements"]),
                tau=firing["tau"],
                readout=firing["readout"],
            )
            for name, firing in document["firing"].items()
        },
        "profile": _read_profile(document["profiles"][0]),
        "per": totals["per"],
        "units": totals["units"],
        "baseline": baseline["name"],
        "baseline_groups_pj": baseline["groups_pj"],
        "methodology": document["methodology"],
    }


def _totals(report: EnergyFigures) -> dict[str, Any]:
    total = report.total
    by_price = report.profile.energy_by_price_pj(total)
    return {
        "per": report.per,
        "units": report.units,
        "ops": total.as_dict(),
        "energy_pj": report.energy_pj,
        "energy_by_price_pj": {k: e / report.units for k, e in by_price.items()},
        "unpriced": report.profile.unpriced(total),
        "firing_rate": report.firing_rate,
        "sign_balance": report.sign_balance,
    }


def _module(row: ModuleRow, report: EnergyFigures) -> dict[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "group": row.group,
        "calls": row.calls,
        "spiking": row.time_steps > 0,
        "detection": "declared" if row.time_steps else None,
        "T": row.time_steps,
        "readout": row.readout,
        "ops": row.ops.as_dict(),
        "dense_ops": row.dense_ops.as_dict(),
        "energy_pj": report.profile.energy_pj(row.ops) / report.units,
    }


def _read_module(module: dict[str, Any]) -> ModuleRow:
    return ModuleRow(
        name=module["name"],
        type=module["type"],
        group=module["group"],
        calls=module["calls"],
        ops=OpCounts(**module["ops"]),
        dense_ops=OpCounts(**module["dense_ops"]),
        time_steps=module["T"],
        readout=module["readout"],
    )


def _groups(report: EnergyFigures) -> dict[str, Any]:
    return {
        name: {
            "ops": group.counts.as_dict(),
            "energy_pj": group.energy_pj,
            "baseline_pj": group.baseline_pj,
            "share": group.share,
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


def _read_profile(profile: dict[str, Any]) -> EnergyProfile:
    fields: dict[str, Any] = {
        key: Price(**value) if isinstance(value, dict) else value
        for key, value in profile.items()
    }
    return EnergyProfile(**fields)


def _finite(value: Any) -> Any:
    """The same with None for nan and infinities, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
