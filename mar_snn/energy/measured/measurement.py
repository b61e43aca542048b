"""Measured energy: joules by trial, what they were measured with, their statistics."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mar_snn.energy.reporting.statistics import Statistic, summarise

__all__ = ["Measurement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Joules that sensors counted; None where none was read, never a zero.

    A tuple has one entry for each trial. `gross` is what the sensors counted; `net` is
    gross less what the idle machine takes in the same time. Everything here is
    measured. There is no method that relates it to a modelled energy, and none is to be
    added: the model leaves out what a sensor counts (idle power, memory, control), so
    a ratio of the two means nothing.

    Raises:
        ValueError: for a joule that cannot have been measured, or trials that differ in
            number.
    """

    #: "nvml", "rapl", "zeus", several joined by "+", or "none"
    source: str
    #: what was metered
    device: tuple[str, ...] = ()
    joules_gross: tuple[float, ...] | None = None
    #: device -> its share of joules_gross
    joules_by_device: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    #: power of the idle machine, in watts; None where it was not measured
    idle_w: float | None = None
    #: how long each trial took
    seconds: tuple[float, ...] = ()
    #: how long a trial had to be at least, in seconds; None where nothing was asked for
    window_s: float | None = None
    #: tokens, or other units of work, done in each trial; None where not told
    tokens: tuple[int, ...] | None = None
    #: limit of each board, in watts
    power_limit_w: tuple[float, ...] = ()
    #: of the slowest board, at the end of each trial
    clock_mhz: tuple[float, ...] = ()
    #: of the hottest board, at the end of each trial, in degrees Celsius
    temp_c: tuple[float, ...] = ()
    driver: str | None = None
    #: what was run, as the caller tells it: batch, context, phase, …
    conditions: Mapping[str, Any] = field(default_factory=dict)
    #: names of all trials in the order in which they ran
    order: tuple[str, ...] = ()
    #: what limits these figures, or why there are none
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        joules = self.joules_gross
        if joules is not None:
            for value in joules:
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(
                        f"a measured energy is above zero joules, got {value}; where "
                        "nothing was measured joules_gross is None"
                    )
        for name, values in (("joules_gross", joules), ("tokens", self.tokens)):
            if values is not None and len(values) != self.trials:
                raise ValueError(
                    f"{name} needs one entry for each of the {self.trials} trials, "
                    f"got {len(values)}"
                )

    @property
    def trials(self) -> int:
        """How often it was measured."""
        return len(self.seconds)

    @property
    def joules_net(self) -> tuple[float, ...] | None:
        """Gross less idle power times duration, by trial."""
        if self.joules_gross is None or self.idle_w is None:
            return None
        spent = zip(self.joules_gross, self.seconds, strict=True)
        return tuple(joules - self.idle_w * seconds for joules, seconds in spent)

    @property
    def j_per_token(self) -> Statistic | None:
        """Gross joules for each unit of work."""
        return self._per_token(self.joules_gross)

    @property
    def j_per_token_net(self) -> Statistic | None:
        """Net joules for each unit of work."""
        return self._per_token(self.joules_net)

    def as_dict(self) -> dict[str, Any]:
        """Fields and figures, as JSON values."""
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        document["joules_net"] = self.joules_net
        document["trials"] = self.trials
        for name in ("j_per_token", "j_per_token_net"):
            statistic: Statistic | None = getattr(self, name)
            document[name] = asdict(statistic) if statistic else None
        values: dict[str, Any] = _json(document)
        return values

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Measurement":
        """The measurement that `as_dict` wrote; its figures are worked out anew.

        Raises:
            ValueError: for keys that no measurement has, or without a source.
        """
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(document) - names - set(_DERIVED))
        if unknown or "source" not in document:
            raise ValueError(
                "expected a measurement with a source, "
                f"got the keys {', '.join(sorted(document))}"
                + (f"; unknown: {', '.join(unknown)}" if unknown else "")
            )
        given = {name: document[name] for name in names & set(document)}
        return cls(
            **{
                name: _tuples(value) if name in _TUPLES else value
                for name, value in given.items()
            }
        )

    def _per_token(self, joules: tuple[float, ...] | None) -> Statistic | None:
        if not joules or self.tokens is None:
            return None
        pairs = zip(joules, self.tokens, strict=True)
        return summarise([spent / tokens for spent, tokens in pairs])


_DERIVED = ("joules_net", "trials", "j_per_token", "j_per_token_net")
_TUPLES = (
    "device",
    "joules_gross",
    "joules_by_device",
    "seconds",
    "tokens",
    "power_limit_w",
    "clock_mhz",
    "temp_c",
    "order",
    "warnings",
)


def _json(value: Any) -> Any:
    """The same in lists; None for the nan of what a single trial does not tell."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list | tuple) else value
