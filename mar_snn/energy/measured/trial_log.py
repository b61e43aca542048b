"""TrialLog: the windows of a run, what they add up to, and what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mar_snn.energy.measured.measurement import Measurement
from mar_snn.energy.measured.windows import Instruments, Window

__all__ = ["MIN_TRIALS", "MIN_WINDOW_S", "TrialLog"]

#: A shorter window, or fewer trials, is named in the warnings.
MIN_WINDOW_S = 5.0
MIN_TRIALS = 5

#: Shares by which idle power and clock may differ before a warning says so.
IDLE_DRIFT = 0.10
CLOCK_DRIFT = 0.05


@dataclass(slots=True)
class TrialLog:
    """The finished windows of a run, in their order."""

    instruments: Instruments
    #: what is run, as the caller tells it
    conditions: Mapping[str, Any] = field(default_factory=dict)
    #: seconds that a trial was asked to last
    window_s: float | None = None
    idle: list[Window] = field(default_factory=list)
    #: name of the workload, its window
    trials: list[tuple[str, Window]] = field(default_factory=list)
    #: sentences for the warnings of every result
    notes: list[str] = field(default_factory=list)

    def rest(self, seconds: float) -> None:
        """Log an idle window, where there is a sensor and the time is not 0."""
        if seconds > 0 and self.instruments.sensors:
            self.idle.append(self.instruments.rest(seconds))

    def measurement(self, name: str, *, units: int | None) -> Measurement:
        """The trials of the workload of that name; `units` are done in each run."""
        windows = [window for of, window in self.trials if of == name]
        states = [window.state for window in windows if window.state is not None]
        by_device = self._joules_by_device(windows)
        clocks = tuple(s.clock_mhz for s in states if s.clock_mhz is not None)
        return Measurement(
            source=self.instruments.source,
            device=self.instruments.devices,
            joules_gross=tuple(sum(w.joules.values()) for w in windows)
            if by_device
            else None,
            joules_by_device=by_device,
            idle_w=self._idle_w,
            seconds=tuple(window.seconds for window in windows),
            window_s=self.window_s,
            tokens=None if units is None else tuple(units * w.runs for w in windows),
            power_limit_w=states[-1].power_limit_w if states else (),
            clock_mhz=clocks,
            temp_c=tuple(s.temp_c for s in states if s.temp_c is not None),
            driver=states[-1].driver if states else None,
            conditions=self.conditions,
            order=tuple(of for of, _ in self.trials),
            warnings=(
                *self.notes,
                *(self._doubts(windows, clocks) if self.instruments.sensors else ()),
                *self.instruments.remarks,
            ),
        )

    def _joules_by_device(
        self, windows: Sequence[Window]
    ) -> dict[str, tuple[float, ...]]:
        """Device -> joules by trial; empty unless every counter moved every time."""
        if not windows or _still_counters(windows):
            return {}
        return {
            device: tuple(window.joules[device] for window in windows)
            for device in windows[0].joules
        }

    @property
    def _idle_w(self) -> float | None:
        """Watts over all idle windows; None without any, or where a counter stood."""
        if not self.idle or _still_counters(self.idle):
            return None
        joules = sum(sum(window.joules.values()) for window in self.idle)
        return joules / sum(window.seconds for window in self.idle)

    def _doubts(self, windows: Sequence[Window], clocks: Sequence[float]) -> list[str]:
        """What speaks against the figures of these trials, a sentence each."""
        return [
            *_few_trials(windows),
            *self._short_windows(windows),
            *self._long_gaps(windows),
            *(
                f"the counter of {device} did not move in every window: no joules are "
                "given; measure longer windows"
                for device in _still_counters(windows)
            ),
            *self._idle_doubts(windows),
            *_clock_drift(clocks),
        ]

    def _short_windows(self, windows: Sequence[Window]) -> list[str]:
        needed = self.instruments.enough_s(MIN_WINDOW_S)
        period = self.instruments.period_s
        shortest = min((window.seconds for window in windows), default=needed)
        if shortest >= needed:
            return []
        return [
            f"the shortest window lasted {shortest:.3g} s where {needed:.3g} s are "
            f"needed: a counter that moves every {period:.3g} s may have missed "
            f"{period / max(shortest, period):.0%} of it"
        ]

    def _long_gaps(self, windows: Sequence[Window]) -> list[str]:
        limit_s = self.instruments.max_gap_s
        longest = max((w.gap_s for w in [*windows, *self.idle]), default=0.0)
        if longest <= limit_s:
            return []
        return [
            f"{longest:.3g} s passed between two readings; after {limit_s:.3g} s a "
            "counter may have wrapped twice and joules be missing: measure shorter runs"
        ]

    def _idle_doubts(self, windows: Sequence[Window]) -> list[str]:
        idle_w = self._idle_w
        if idle_w is None:
            return ["idle power was not measured: there are no net figures"]
        doubts = []
        powers = [sum(w.joules.values()) / w.seconds for w in self.idle]
        if max(powers) > (1 + IDLE_DRIFT) * min(powers):
            doubts.append(
                f"idle power went from {powers[0]:.3g} W to {powers[-1]:.3g} W and net "
                "takes their mean: let the machine settle, keep others off it"
            )
        if any(sum(w.joules.values()) <= idle_w * w.seconds for w in windows):
            doubts.append(
                "a trial took no more power than the idle machine: its net figure says "
                "nothing"
            )
        return doubts


def _still_counters(windows: Sequence[Window]) -> list[str]:
    """Devices whose counter did not move in some window."""
    return sorted({d for w in windows for d, joules in w.joules.items() if joules <= 0})


def _few_trials(windows: Sequence[Window]) -> list[str]:
    if len(windows) >= MIN_TRIALS:
        return []
    return [f"trials: {len(windows)}, where {MIN_TRIALS} or more are needed"]


def _clock_drift(clocks: Sequence[float]) -> list[str]:
    if not clocks or max(clocks) <= (1 + CLOCK_DRIFT) * min(clocks):
        return []
    return [
        f"the clock was between {min(clocks):.0f} and {max(clocks):.0f} MHz after the "
        "trials: lock it (nvidia-smi --lock-gpu-clocks)"
    ]
