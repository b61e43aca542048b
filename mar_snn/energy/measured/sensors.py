"""What a sensor of energy is: it reads a counter that hardware or driver keeps.

None multiplies a load by a nominal power: what cannot be read stays unknown.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["BoardState", "Sensor", "SensorUnavailableError"]


class SensorUnavailableError(RuntimeError):
    """A sensor cannot be read here; the text says why and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardState:
    """What the graphics boards were set to; None or empty where they do not say."""

    driver: str | None
    #: one a board
    power_limit_w: tuple[float, ...]
    #: of the slowest board's multiprocessors
    clock_mhz: float | None
    #: of the hottest board
    temp_c: float | None


@runtime_checkable
class Sensor(Protocol):
    """Joules by device between `start` and `stop`.

    Attributes:
        name: the source, as `EnergyMeter` knows it.
        devices: names of what is metered.
        period_s: seconds between two updates of the counter.
        max_gap_s: seconds between two readings after which a wrap may go unseen.
        remarks: sentences on what the figures cover and what limits them.
    """

    name: str
    devices: tuple[str, ...]
    period_s: float
    max_gap_s: float
    remarks: tuple[str, ...]

    def start(self) -> None:
        """Begin a window."""
        ...

    def poll(self) -> None:
        """Read the counters inside a window, so that no wrap goes unseen."""
        ...

    def stop(self) -> dict[str, float]:
        """Device -> joules since `start`; zero says that its counter did not move."""
        ...

    def state(self) -> BoardState | None:
        """Clocks and limits at this moment, None where the sensor knows none."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
