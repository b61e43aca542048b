"""EnergyMeter and measure: joules that sensors count while a workload runs.

The protocol: warm-up, windows of five seconds or more in which the workload repeats,
five trials or more in random order against a baseline, idle windows before and after.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, overload

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mar_snn.energy.measured.measurement import Measurement
from mar_snn.energy.measured.trial_log import MIN_TRIALS, MIN_WINDOW_S, TrialLog
from mar_snn.energy.measured.windows import Clock, Instruments

__all__ = ["EnergyMeter", "MeasuringInterrupted", "TrialPlan", "measure"]


class MeasuringInterrupted(KeyboardInterrupt):
    """The user stopped `measure`; `measured` has what was finished, by workload."""

    def __init__(self, measured: Mapping[str, Measurement]) -> None:
        super().__init__("measuring was interrupted")
        self.measured = measured


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPlan:
    """How often and how long `measure` measures.

    Raises:
        ValueError: for no trials, empty windows or a warm-up below zero.
    """

    trials: int = MIN_TRIALS
    #: seconds of a trial at least; never less than 50 updates of the slowest counter
    window_s: float = MIN_WINDOW_S
    #: seconds for which each workload runs unmeasured first; it always runs once
    warm_up_s: float = 5.0
    #: of the order of the trials
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be one or more, got {self.trials}")
        if not self.window_s > 0:
            raise ValueError(f"window_s must be above zero, got {self.window_s}")
        if not self.warm_up_s >= 0:
            raise ValueError(f"warm_up_s must not be below zero, got {self.warm_up_s}")


class EnergyMeter:
    """The energy of a block of code, read from sensors: `with EnergyMeter() as meter:`.

    Idle power is measured before the block, so the model has to be loaded by then. Read
    `meter.result` after the block, also where an exception ended it. One block is one
    trial without warm-up; `measure` does the whole protocol.

    Args:
        source: "nvml", "rapl", "zeus", "auto" for all that can be read, or "none".
        idle_s: seconds of the idle window; 0 leaves it out, and with it the net energy.
        tokens: tokens, or other units of work, of the block; may be set inside it.
        conditions: what is run (batch, context, phase, …), kept with the result.
        clock: how seconds are told and spent.

    Raises:
        ValueError: for an idle window below zero.
    """

    def __init__(
        self,
        *,
        source: str = "auto",
        idle_s: float = 5.0,
        tokens: int | None = None,
        conditions: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not idle_s >= 0:
            raise ValueError(f"idle_s must not be below zero, got {idle_s}")
        self.source = source
        self.idle_s = idle_s
        self.tokens = tokens
        self.conditions = dict(conditions or {})
        self.clock = clock or Clock()
        self._result: Measurement | None = None

    @property
    def result(self) -> Measurement:
        """What was measured; without a sensor, its warnings say why there is none.

        Raises:
            RuntimeError: before the block has ended.
        """
        if self._result is None:
            raise RuntimeError(
                "nothing is measured yet: read meter.result after the with block"
            )
        return self._result

    def open(self) -> Instruments:
        """The sensors of the meter, a context manager.

        Raises:
            ValueError: for an unknown source.
            SensorUnavailableError: where a sensor asked for by name cannot be read.
        """
        return Instruments(self.source, self.clock)

    def __enter__(self) -> "EnergyMeter":
        self._result = None
        with ExitStack() as stack:
            instruments = stack.enter_context(self.open())
            self._log = TrialLog(instruments, self.conditions)
            self._log.rest(self.idle_s)
            instruments.start()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        log = self._log
        with self._open:
            log.trials.append(("workload", log.instruments.stop(runs=1)))
        if kind is not None:
            log.notes.append(f"{kind.__name__} ended the block before its time")
        self._result = log.measurement("workload", units=self.tokens)


@overload
def measure(
    workload: Callable[[], object],
    *,
    units: int,
    baseline: None = None,
    meter: EnergyMeter | None = None,
    plan: TrialPlan | None = None,
    progress: bool = True,
) -> Measurement: ...


@overload
def measure(
    workload: Callable[[], object],
    *,
    units: int,
    baseline: Callable[[], object],
    meter: EnergyMeter | None = None,
    plan: TrialPlan | None = None,
    progress: bool = True,
) -> dict[str, Measurement]: ...


def measure(
    workload: Callable[[], object],
    *,
    units: int,
    baseline: Callable[[], object] | None = None,
    meter: EnergyMeter | None = None,
    plan: TrialPlan | None = None,
    progress: bool = True,
) -> Measurement | dict[str, Measurement]:
    """What the workload takes; with a baseline, both by "workload" and "baseline".

    Without a sensor nothing runs, and the warnings of the result say why.

    Args:
        workload: one run of what is measured, repeated as often as a window needs.
        units: tokens, or other units of work, that one run does.
        baseline: the same work done otherwise, measured in turn.
        meter: source, idle seconds and conditions.
        plan: trials, windows, warm-up, seed.
        progress: draw a progress bar, between the windows only.

    Raises:
        ValueError: for less than one unit.
        SensorUnavailableError: where a sensor asked for by name cannot be read.
        MeasuringInterrupted: on Ctrl-C, with the finished trials in `measured`.
    """
    if units < 1:
        raise ValueError(f"units must be one or more, got {units}")
    meter, plan = meter or EnergyMeter(), plan or TrialPlan()
    workloads = {"workload": workload}
    if baseline is not None:
        workloads["baseline"] = baseline
    with meter.open() as instruments:
        log = TrialLog(instruments, meter.conditions, plan.window_s)
        try:
            if instruments.sensors:
                steps = (plan.trials + 1) * len(workloads) + 2
                with _progress(steps, shown=progress) as step:
                    _run(log, workloads, plan, idle_s=meter.idle_s, step=step)
        except KeyboardInterrupt as stop:
            log.notes.append("measuring was interrupted before its last trial")
            measured = {n: log.measurement(n, units=units) for n in workloads}
            raise MeasuringInterrupted(measured) from stop
    measured = {name: log.measurement(name, units=units) for name in workloads}
    return measured["workload"] if baseline is None else measured


def _run(
    log: TrialLog,
    workloads: Mapping[str, Callable[[], object]],
    plan: TrialPlan,
    *,
    idle_s: float,
    step: Callable[[str], None],
) -> None:
    """The protocol; every finished window is in the log at once."""
    instruments = log.instruments
    for name, workload in workloads.items():
        step(f"warm-up of the {name}")
        instruments.repeat(workload, plan.warm_up_s)
    step("idle")
    log.rest(idle_s)
    window_s = instruments.enough_s(plan.window_s)
    shuffle = random.Random(plan.seed)
    for trial in range(1, plan.trials + 1):
        for name in shuffle.sample(list(workloads), k=len(workloads)):
            step(f"{name}, trial {trial} of {plan.trials}")
            window = instruments.repeat(workloads[name], window_s)
            log.trials.append((name, window))
    step("idle")
    log.rest(idle_s)
    step("measured")


@contextmanager
def _progress(steps: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A function that says what begins; between two calls nothing is drawn."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, auto_refresh=False, disable=not shown
    ) as bar:
        task, done = bar.add_task("", total=steps), count()

        def step(what: str) -> None:
            bar.update(task, description=what, completed=next(done), refresh=True)

        yield step
