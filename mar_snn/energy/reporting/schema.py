"""The schema of a report as JSON, `mar-snn/energy-report/2`, and its check.

Keys carry their unit (`_pj`, `_bytes`). `ops` and `moved` are those of the whole run,
energies are per unit (`totals.per`, `totals.units`); an interval is [low, high]. What
is not a finite number is null. Version 1 knew neither bytes nor batches nor the wider
methodology: such a file is refused, its run has to be counted again.
"""

from collections.abc import Mapping
from typing import Any

from mar_snn.energy.counts import ByteCounts, OpCounts

__all__ = ["SCHEMA", "check_document"]

SCHEMA = "mar-snn/energy-report/2"


class _Each:
    """A list, or an object with any keys, of values of one kind."""

    def __init__(self, container: type, of: Any) -> None:
        self.container, self.of = container, of


_COUNT, _NUMBER, _TEXT = int, (int, float), str
_MAYBE = (int, float, type(None))
_INTERVAL = _Each(list, _MAYBE)
_OPS = dict.fromkeys(OpCounts().as_dict(), _COUNT)
_MOVED = dict.fromkeys(ByteCounts().as_dict(), _COUNT)
_STATISTIC = {"mean": _MAYBE, "std": _MAYBE, "ci95": _INTERVAL, "n": _COUNT}
_PRICE = {"value_pj": _NUMBER, "source": _TEXT, "note": _TEXT}

_PROFILE = {
    "name": _TEXT, "node_nm": _NUMBER, "voltage_v": _MAYBE, "accumulator": _TEXT,
    "mac": _PRICE, "ac": _PRICE, "mul": _PRICE, "add": _PRICE,
    "memory": _Each(
        list,
        {
            "name": _TEXT, "kind": _TEXT, "low_pj": _NUMBER, "high_pj": _NUMBER,
            "source": _TEXT, "access_bits": _COUNT, "note": _TEXT,
        },
    ),
}  # fmt: skip

_MODULE = {
    "name": _TEXT, "type": _TEXT, "group": _TEXT, "phase": _TEXT, "calls": _COUNT,
    "spiking": bool, "detection": _TEXT, "T": _COUNT, "readout": _TEXT,
    "ops": _OPS, "dense_ops": _OPS, "moved": _MOVED, "dense_moved": _MOVED,
    "columns": _COUNT, "columns_touched": _COUNT,
    "energy_pj": _NUMBER, "share": _NUMBER,
}  # fmt: skip

_FIRING = {
    "pos": _Each(list, _COUNT), "neg": _Each(list, _COUNT),
    "elements": _Each(list, _COUNT), "tau": _MAYBE, "readout": _TEXT,
    "channels": _COUNT, "silent_channels": _COUNT, "saturated_channels": _COUNT,
    "rate": _MAYBE, "rate_by_step": _Each(list, _MAYBE), "p_pos": _MAYBE,
    "p_neg": _MAYBE, "sign_balance": _MAYBE,
}  # fmt: skip

_DOCUMENT = {
    "schema": _TEXT,
    "kind": _TEXT,
    "methodology": dict,
    "profiles": _Each(list, _PROFILE),
    "totals": {
        "per": _TEXT, "units": _COUNT, "ops": _OPS, "moved": _MOVED,
        "energy_pj": _NUMBER, "energy_by_price_pj": _Each(dict, _NUMBER),
        "unpriced": _Each(dict, _COUNT), "firing_rate": _MAYBE, "sign_balance": _MAYBE,
    },
    "modules": _Each(list, _MODULE),
    "groups": _Each(
        dict,
        {
            "ops": _OPS, "moved": _MOVED, "energy_pj": _NUMBER, "baseline_pj": _NUMBER,
            "share": _NUMBER, "columns_touched": _MAYBE,
        },
    ),
    "phases": _Each(
        dict, {"units": _NUMBER, "energy_pj": _NUMBER, "baseline_pj": _NUMBER}
    ),
    "firing": _Each(dict, _FIRING),
    "against": {
        "name": _TEXT, "groups_pj": _Each(dict, _NUMBER),
        "bytes": _Each(dict, _NUMBER), "batches_pj": _Each(list, _NUMBER),
        "energy_pj": _NUMBER, "ratio": _MAYBE,
    },
    "baselines": _Each(
        list,
        {
            "name": _TEXT, "definition": _TEXT, "profile": _TEXT,
            "energy_pj": (_INTERVAL, None), "model_pj": _NUMBER,
            "ratio": (_INTERVAL, None), "missing": _TEXT,
        },
    ),
    "traffic": _Each(
        list,
        {
            "assumption": _TEXT, "memory": _TEXT, "moved_bytes": _NUMBER,
            "baseline_bytes": _NUMBER, "energy_pj": _INTERVAL,
            "baseline_pj": _INTERVAL, "ratio": _INTERVAL,
        },
    ),
    "break_even": {
        "spikes_per_synapse": _MAYBE, "compute": _MAYBE, "whole_model": _MAYBE,
        "matched_bit": (_INTERVAL, None), "ceiling": _MAYBE, "slope": _MAYBE,
    },
    "batches": _Each(
        list,
        {
            "ops": _OPS, "dense_ops": _OPS, "tokens": _COUNT, "phase": _TEXT,
            "units": _NUMBER,
        },
    ),
    "statistics": _Each(dict, _STATISTIC),
    "measured": (dict, None),
}  # fmt: skip


def check_document(document: Any) -> None:
    """Raise unless `document` keeps to the schema.

    Raises:
        ValueError: naming the first place that does not.
    """
    found = document.get("schema") if isinstance(document, Mapping) else None
    if found == "mar-snn/energy-report/1":
        raise ValueError(
            f"this report has schema {found!r}, without bytes and batches; "
            f"{SCHEMA!r} cannot be made of it: count the run again"
        )
    if found != SCHEMA:
        raise ValueError(f"expected a report of schema {SCHEMA!r}, got {found!r}")
    _check(document, _DOCUMENT, "report")


def _check(value: Any, spec: Any, where: str) -> None:
    if isinstance(spec, tuple) and spec[-1] is None:
        if value is not None:
            _check(value, spec[0], where)
    elif isinstance(spec, _Each):
        _check_type(value, spec.container, where)
        entries = value.items() if spec.container is dict else enumerate(value)
        for key, entry in entries:
            _check(entry, spec.of, f"{where}.{key}")
    elif isinstance(spec, dict):
        _check_type(value, dict, where)
        for key, inner in spec.items():
            if key not in value:
                raise ValueError(f"{where} has no {key!r}, which {SCHEMA!r} asks for")
            _check(value[key], inner, f"{where}.{key}")
    else:
        _check_type(value, spec, where)


def _check_type(value: Any, wanted: Any, where: str) -> None:
    # True is an int to Python, but no count
    wrong_bool = isinstance(value, bool) and wanted is not bool
    if wrong_bool or not isinstance(value, wanted):
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{where} must be {names}, got {value!r}")
