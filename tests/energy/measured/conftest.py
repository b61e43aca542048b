"""A machine whose time and power are numbers, and sensors that follow it."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from mar_snn.energy.measured import windows
from mar_snn.energy.measured.measure import EnergyMeter
from mar_snn.energy.measured.sensors import BoardState, SensorUnavailableError
from mar_snn.energy.measured.windows import Clock


class Machine:
    """Idles at 20 W; what is run on it says how long it takes and at what power."""

    def __init__(self) -> None:
        self.seconds = self.joules = 0.0
        self.log: list[str] = []

    def run(self, seconds: float, watts: float, name: str = "work") -> None:
        self.seconds += seconds
        self.joules += seconds * watts
        self.log.append(name)

    def rest(self, seconds: float) -> None:
        self.run(seconds, 20.0, "idle")

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self.rest)

    def meter(self, **arguments: Any) -> EnergyMeter:
        return EnergyMeter(**{"source": "nvml", "clock": self.clock} | arguments)


class Counter:
    """A sensor of a share of the machine's joules, with a board's clock and heat."""

    def __init__(self, machine: Machine, name: str = "nvml", share: float = 1.0):
        self.machine, self.name, self.share = machine, name, share
        self.period_s, self.max_gap_s = 0.1, math.inf
        self.devices, self.remarks = (f"{name} device",), (f"{name} remark",)
        self.polls = self.closed = 0
        self.clocks_mhz = iter([2040.0] * 100)
        self.temp_c = 50.0

    def start(self) -> None:
        self.before = self.machine.joules

    def poll(self) -> None:
        self.polls += 1

    def stop(self) -> dict[str, float]:
        return {self.devices[0]: self.share * (self.machine.joules - self.before)}

    def state(self) -> BoardState | None:
        if self.name != "nvml":
            return None
        self.temp_c += 1.0
        return BoardState(
            driver="580.65",
            power_limit_w=(72.0,),
            clock_mhz=next(self.clocks_mhz),
            temp_c=self.temp_c,
        )

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def counter(machine: Machine) -> Callable[..., Counter]:
    """counter(name, share): a sensor of the machine."""
    return lambda *args: Counter(machine, *args)


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Give the sensors that exist, by name; the others cannot be read.

    Returns what was asked of each, by name.
    """

    def give(**sensors: Counter) -> dict[str, Any]:
        asked = {}

        def maker(name: str) -> Callable[..., Counter]:
            def make(**which: bool) -> Counter:
                asked[name] = which
                if name not in sensors:
                    raise SensorUnavailableError(f"{name}: there is none")
                return sensors[name]

            return make

        for name in ("nvml", "rapl", "zeus"):
            monkeypatch.setattr(windows, f"{name.capitalize()}Sensor", maker(name))
        return asked

    return give


@pytest.fixture
def board(provide: Callable[..., Any], counter: Callable[..., Counter]) -> Counter:
    """The machine's only sensor."""
    sensor = counter()
    provide(nvml=sensor)
    return sensor
