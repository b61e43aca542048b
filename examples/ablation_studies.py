"""The ablation studies as data: which rows are trained, and what each should show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from mar_snn.spiking import SITES, SpikingConfig

__all__ = ["CODER", "REFEREE", "STUDIES", "Row", "Study"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a study.

    Args:
        section: the part of the table that the row stands in.
        name: unique in its section.
        spiking: the coders; None for the dense teacher, which is not trained.
        training: fields of SBDSConfig: the loss, and what differs from the budget.
        claim: what is said of the row in comparison with `against`.
        against: name of a row of the same section; "" where nothing is claimed.
        expected: whether the claim says that its perplexity is "lower" or "higher".
    """

    section: str
    name: str
    spiking: SpikingConfig | None
    training: Mapping[str, Any] = field(default_factory=dict)
    claim: str = ""
    against: str = ""
    expected: str = "lower"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Rows that are trained under one budget.

    Args:
        title: heads the table.
        rows: in the order of the table.
        max_steps: training steps of every row, unless the runner is told otherwise.
        reference: (section, name) of the row that all others are compared with.
        factors: name -> fields of SpikingConfig, where the rows are all combinations.
    """

    title: str
    rows: tuple[Row, ...]
    max_steps: int
    reference: tuple[str, str]
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {(row.section, row.name) for row in self.rows}
        named = {(row.section, row.against) for row in self.rows if row.against}
        missing = (named | {self.reference}) - known
        if missing or len(known) < len(self.rows):
            raise ValueError(
                "every row needs a name of its own in its section, and can be compared "
                f"with rows of that section only; got {len(self.rows)} rows with "
                f"{len(known)} names, without {sorted(missing) or 'none missing'}"
            )


def _kl(alpha: float, beta: float) -> dict[str, Any]:
    return {"alpha": alpha, "beta": beta, "feature_weight": 0.0}


def _sbds(points: str = "pre_norm") -> dict[str, Any]:
    features = {"feature_weight": 0.25, "feature_points": points}
    return {"alpha": 0.2, "beta": 0.7, "feature_distance": "rms", **features}


def _lif(tau: float) -> SpikingConfig:
    return SpikingConfig(
        neuron="lif", tau=tau, readout="sum", fire_ratio=1.0, gradient="surrogate"
    )


#: Binary spikes throw away more than ternary ones, so the weights must move further.
_FAST = {"learning_rate": 2e-3}
_FORWARD, _BOTH = _kl(1.0, 0.0), _kl(0.2, 0.7)
_ATMN = SpikingConfig(
    time_steps=4,
    tau=0.5,
    readout="geometric",
    fire_ratio=2 / 3,
    gradient="straight_through",
)


def _with(**changes: Any) -> SpikingConfig:
    return SpikingConfig(**(vars(_ATMN) | changes))


def _section(section: str, *rows: tuple[Any, ...]) -> tuple[Row, ...]:
    """Rows from (name, spiking, training[, claim, against[, expected]])."""
    fields = ("name", "spiking", "training", "claim", "against", "expected")
    return tuple(
        Row(section=section, **dict(zip(fields, row, strict=False))) for row in rows
    )


#: What the referee asked for: every part of the method against the row without it.
REFEREE = Study(
    title="Every part of the method against the row without it",
    max_steps=50,
    reference=("Components", "ATMN, SBDS"),
    rows=(
        *_section(
            "Components",
            ("dense teacher", None, {}),
            ("binary LIF, forward KL", _lif(2.0), _FORWARD | _FAST),
            (
                "binary LIF without leak, forward KL",
                _lif(1.0),
                _FORWARD | _FAST,
                "the leak costs the binary neuron more than it gives",
                "binary LIF, forward KL",
            ),
            (
                "ATMN, forward KL",
                _ATMN,
                _FORWARD,
                "ternary ATMN codes more than binary LIF, with all else equal",
                "binary LIF, forward KL",
            ),
            (
                "ATMN, + reverse KL",
                _ATMN,
                _BOTH,
                "reverse KL helps",
                "ATMN, forward KL",
            ),
            (
                "ATMN, SBDS",
                _ATMN,
                _sbds(),
                "pre-norm alignment helps on top of both divergences",
                "ATMN, + reverse KL",
            ),
            (
                "binary LIF, SBDS",
                _lif(2.0),
                _sbds() | _FAST,
                "the loss alone does not make up for the neuron",
                "ATMN, forward KL",
                "higher",
            ),
        ),
        *_section(
            "Learning rate, forward KL",
            *(
                (
                    f"{name}, {rate:g}",
                    spiking,
                    _FORWARD | {"learning_rate": rate},
                    *(
                        (f"worse than {best:g}", f"{name}, {best:g}", "higher")
                        if rate != best
                        else ()
                    ),
                )
                for name, spiking, best, rates in (
                    ("binary LIF", _lif(2.0), 2e-3, (2e-4, 1e-3, 2e-3, 5e-3)),
                    ("ATMN", _ATMN, 2e-4, (1e-4, 2e-4, 5e-4)),
                )
                for rate in rates
            ),
        ),
        *_section(
            "Features, with both divergences",
            ("none", _ATMN, _BOTH),
            ("pre-norm", _ATMN, _sbds(), "better than none", "none"),
            (
                "post-norm",
                _ATMN,
                _sbds("post_norm"),
                "worse than pre-norm",
                "pre-norm",
                "higher",
            ),
            ("both", _ATMN, _sbds("both"), "worse than pre-norm", "pre-norm", "higher"),
        ),
        *_section(
            "Divergences (alpha, beta), without features",
            ("(1, 0)", _ATMN, _FORWARD),
            (
                "(0, 1)",
                _ATMN,
                _kl(0.0, 1.0),
                "reverse KL alone beats forward KL alone",
                "(1, 0)",
            ),
            (
                "(0.7, 0.2)",
                _ATMN,
                _kl(0.7, 0.2),
                "both beat forward KL alone",
                "(1, 0)",
            ),
            (
                "(0.2, 0.7)",
                _ATMN,
                _BOTH,
                "mostly reverse beats mostly forward",
                "(0.7, 0.2)",
            ),
        ),
        *_section(
            "Micro-steps T",
            ("1", _with(time_steps=1), _sbds()),
            ("2", _with(time_steps=2), _sbds(), "better than T = 1", "1"),
            ("3", _with(time_steps=3), _sbds(), "better than T = 2", "2"),
            ("4", _ATMN, _sbds(), "better than T = 3", "3"),
            ("6", _with(time_steps=6), _sbds(), "better than T = 4", "4"),
        ),
        *_section(
            "Membrane tau",
            (
                "2",
                _with(tau=2.0),
                _sbds(),
                "a leak is worse than binary digits",
                "0.5",
                "higher",
            ),
            (
                "1",
                _with(tau=1.0),
                _sbds(),
                "counting is worse than binary digits",
                "0.5",
                "higher",
            ),
            ("0.5", _ATMN, _sbds()),
        ),
        *_section(
            "Fire ratio",
            (
                "1",
                _with(fire_ratio=1.0),
                _sbds(),
                "cutting off is worse than rounding",
                "2/3",
                "higher",
            ),
            ("2/3", _ATMN, _sbds()),
        ),
        *_section(
            "Sites",
            ("all four", _ATMN, _sbds()),
            *(
                (
                    f"{site} only",
                    _with(sites=(site,)),
                    _sbds(),
                    "one site costs less than four",
                    "all four",
                )
                for site in SITES
            ),
        ),
    ),
)

_GRADIENTS = {
    "straight-through": {"gradient": "straight_through"},
    **{
        f"{name}{', reset detached' if detached else ''}": {
            "gradient": "surrogate",
            "surrogate": name,
            "detach_reset": detached,
        }
        for name, detached in product(("ATan", "Sigmoid"), (False, True))
    },
}
#: At τ = 1 both read-outs weigh every step by 1. A straight-through gradient does not
#: pass the reset, so detaching it changes nothing.
_DYNAMICS = (
    (0.5, "geometric"),
    (0.5, "sum"),
    (1.0, "geometric"),
    (2.0, "geometric"),
    (2.0, "sum"),
)

#: Which coder trains best: all distinct combinations of gradient, reset, fire ratio,
#: membrane and read-out.
CODER = Study(
    title="Which coder trains best",
    max_steps=30,
    reference=("tau = 0.5, geometric, fire ratio 2/3", "straight-through"),
    factors={
        "gradient": ("gradient", "surrogate", "detach_reset"),
        "fire ratio": ("fire_ratio",),
        "tau": ("tau",),
        "read-out": ("readout",),
    },
    rows=tuple(
        Row(
            section=f"tau = {tau:g}, {readout if tau != 1 else 'either read-out'}, "
            f"fire ratio {ratio_name}",
            name=name,
            spiking=_with(tau=tau, readout=readout, fire_ratio=ratio, **gradient),
            training=_sbds(),
        )
        for (tau, readout), (ratio_name, ratio), (name, gradient) in product(
            _DYNAMICS, (("2/3", 2 / 3), ("1", 1.0)), _GRADIENTS.items()
        )
    ),
)

#: By the name that the runner knows them by.
STUDIES = {"referee": REFEREE, "coder": CODER}
