"""Windows of measured energy: sensors and a clock, read together at both ends."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import torch

from mar_snn.energy.measured.nvml import NvmlSensor
from mar_snn.energy.measured.rapl import RaplSensor
from mar_snn.energy.measured.sensors import BoardState, Sensor, SensorUnavailableError
from mar_snn.energy.measured.zeus import ZeusSensor

__all__ = ["SOURCES", "Clock", "Instruments", "Window", "open_sensors"]

SOURCES = ("auto", "nvml", "rapl", "zeus", "none")

#: A window holds at least so many updates of the slowest counter: what its two ends cut
#: off is then at most a fiftieth.
UPDATES = 50


@dataclass(frozen=True, slots=True)
class Clock:
    """How seconds are told and spent."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What was read between two moments."""

    seconds: float
    #: device -> joules
    joules: dict[str, float]
    #: times that the workload ran
    runs: int = 0
    #: longest time between two readings
    gap_s: float = 0.0
    #: of the boards, at the end
    state: BoardState | None = None


def open_sensors(source: str) -> tuple[list[Sensor], list[str]]:
    """The sensors of a source, and a sentence for each that cannot be read.

    "auto" takes all that can be read: NVML and RAPL, and zeus for the boards or
    processors that these two do not reach, so that no joule is counted twice.

    Raises:
        ValueError: for an unknown source.
        SensorUnavailableError: where a sensor asked for by name cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if source == "none":
        return [], ["source='none': no sensor was asked for"]
    by_name: dict[str, Callable[[], Sensor]] = {
        "nvml": NvmlSensor,
        "rapl": RaplSensor,
        "zeus": ZeusSensor,
    }
    if source != "auto":
        return [by_name[source]()], []
    sensors: list[Sensor] = []
    reasons: list[str] = []

    def is_readable(make: Callable[[], Sensor]) -> bool:
        try:
            sensors.append(make())
        except SensorUnavailableError as error:
            reasons.append(str(error))
            return False
        return True

    boards, packages = is_readable(NvmlSensor), is_readable(RaplSensor)
    if not (boards and packages):
        is_readable(lambda: ZeusSensor(gpus=not boards, cpus=not packages))
    return sensors, reasons


@dataclass(slots=True)
class Instruments:
    """The sensors of a source, open, and a clock; a context manager that closes them.

    Raises:
        ValueError: for an unknown source.
        SensorUnavailableError: where a sensor asked for by name cannot be read.
    """

    asked: str
    clock: Clock = field(default_factory=Clock)
    sensors: list[Sensor] = field(init=False)
    #: why the others cannot be read
    unread: list[str] = field(init=False)
    _began: float = field(init=False, default=0.0)
    _read_at: float = field(init=False, default=0.0)
    _gap_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.sensors, self.unread = open_sensors(self.asked)

    def __enter__(self) -> "Instruments":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sensor in self.sensors:
            sensor.close()

    @property
    def source(self) -> str:
        """The names of the sensors, "none" without any."""
        return "+".join(sensor.name for sensor in self.sensors) or "none"

    @property
    def devices(self) -> tuple[str, ...]:
        """What is metered."""
        return tuple(device for sensor in self.sensors for device in sensor.devices)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the figures cover, and which sensors are missing."""
        covered = [remark for sensor in self.sensors for remark in sensor.remarks]
        return (*covered, *(f"not measured: {reason}" for reason in self.unread))

    @property
    def period_s(self) -> float:
        """Seconds between two updates of the slowest counter."""
        return max((sensor.period_s for sensor in self.sensors), default=0.0)

    @property
    def max_gap_s(self) -> float:
        """Seconds between two readings after which a counter's wrap may go unseen."""
        return min((sensor.max_gap_s for sensor in self.sensors), default=math.inf)

    def enough_s(self, window_s: float) -> float:
        """Seconds that a window has to last: `window_s`, or more for a slow counter."""
        return max(window_s, UPDATES * self.period_s)

    def start(self) -> None:
        """Begin a window, with nothing left to do on the device."""
        synchronize()
        for sensor in self.sensors:
            sensor.start()
        self._began = self._read_at = self.clock.now()
        self._gap_s = 0.0

    def poll(self) -> float:
        """Read the counters inside a window; the seconds since its beginning."""
        synchronize()
        for sensor in self.sensors:
            sensor.poll()
        return self._tick() - self._began

    def stop(self, runs: int = 0) -> Window:
        """End the window, with nothing left to do on the device."""
        synchronize()
        now = self._tick()
        joules: dict[str, float] = {}
        for sensor in self.sensors:
            joules |= sensor.stop()
        states = [sensor.state() for sensor in self.sensors]
        return Window(
            seconds=now - self._began,
            joules=joules,
            runs=runs,
            gap_s=self._gap_s,
            state=next((state for state in states if state is not None), None),
        )

    def rest(self, seconds: float) -> Window:
        """A window in which nothing is done."""
        self.start()
        self.clock.sleep(seconds)
        return self.stop()

    def repeat(self, workload: Callable[[], object], seconds: float) -> Window:
        """A window in which the workload runs until the time is over."""
        self.start()
        runs, chunk = 0, 1
        while True:
            for _ in range(chunk):
                workload()
            runs += chunk
            elapsed = self.poll()
            if elapsed >= seconds:
                return self.stop(runs)
            # as many as are left by the rate so far, twice the number at most: few
            # waits for the device, and no window that is much too long
            left = (seconds - elapsed) * runs / elapsed if elapsed > 0 else runs
            chunk = min(math.ceil(left), runs)

    def _tick(self) -> float:
        now = self.clock.now()
        self._gap_s = max(self._gap_s, now - self._read_at)
        self._read_at = now
        return now


def synchronize() -> None:
    """Wait until the accelerators that this process uses have nothing left to do."""
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    if torch.backends.mps.is_available():
        torch.mps.synchronize()
