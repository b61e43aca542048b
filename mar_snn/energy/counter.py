"""SpikeOpCounter: watches a forward pass and counts what it would cost.

Works below autograd, so it sees the operations that really run; composite operations
are taken apart under inference_mode too. It changes no result and waits for no device.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

import mar_snn.energy.conv_rules
import mar_snn.energy.module_rules
import mar_snn.energy.op_rules  # noqa: F401  the three fill the registries
from mar_snn.energy.accumulate import FiringTally, RowTally
from mar_snn.energy.counts import CountedRun, ModuleRow, OpCounts
from mar_snn.energy.profiles import EnergyProfile
from mar_snn.energy.report import EnergyReport
from mar_snn.energy.rules import (
    ModuleCall,
    ModuleRule,
    OpCall,
    find_module_rule,
    find_op_rule,
    is_composite,
    is_free,
)
from mar_snn.energy.spike_trains import Events, SpikeTrain, SpikeTrains
from mar_snn.neurons.spikes import SpikeEvent, listen_to_spikes

__all__ = ["SpikeOpCounter"]

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _Frame:
    """A module whose forward is running."""

    __slots__ = ("events", "module", "opaque", "row", "rule")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        #: where its operations are counted; None outside the model
        self.row: RowTally | None = None
        #: its module rule
        self.rule: ModuleRule | None = None
        #: whether it or a module around it is priced as a whole
        self.opaque = False
        #: what it declared
        self.events: Events | None = None


class SpikeOpCounter:
    """Counts the operations of a model's forward passes inside its `with` blocks.

    Several blocks add up. Only what runs inside the forward of `model` is counted, and
    only forward passes: not backward, not the sampling around the model.

        with SpikeOpCounter(model) as counter:
            model(input_ids)
        report = counter.report(profile="horowitz-45nm-fp32")

    Args:
        model: the model; its module names are the names of the rows. A module that is
            used in several places is one row, under its first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: dict[nn.Module, str] = {}
        self._rows: dict[str, RowTally] = {}
        self._firing: dict[str, FiringTally] = {}
        self._calls = 0
        self._uncounted: Counter[str] = Counter()
        self._frames: list[_Frame] = []
        self._trains = SpikeTrains()
        self._paused = False
        self._running: ExitStack | None = None

    def __enter__(self) -> "SpikeOpCounter":
        if self._running is not None:
            raise RuntimeError(
                "this counter is counting already: leave its block first, or count "
                "with a second SpikeOpCounter"
            )
        self._names = {module: name for name, module in self.model.named_modules()}
        with ExitStack() as stack:
            stack.callback(self._stop)
            before = register_module_forward_pre_hook(self._enter_module)
            stack.callback(before.remove)
            after = register_module_forward_hook(
                self._leave_module, with_kwargs=True, always_call=True
            )
            stack.callback(after.remove)
            stack.enter_context(listen_to_spikes(self._hear))
            stack.enter_context(_CountingMode(self))
            self._running = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._running is not None:
            self._running.close()

    def _stop(self) -> None:
        self._frames, self._trains, self._running = [], SpikeTrains(), None

    # ---- results

    def run(self) -> CountedRun:
        """Everything counted so far, as integers; waits for the device."""
        parameters = list(self.model.parameters())
        return CountedRun(
            rows=tuple(self.rows()),
            firing={name: tally.read() for name, tally in self._firing.items()},
            calls=self._calls,
            uncounted=dict(self._uncounted),
            model={
                "class": type(self.model).__name__,
                "parameters": sum(p.numel() for p in parameters),
                "dtypes": sorted({str(p.dtype) for p in parameters}),
            },
        )

    def rows(self) -> list[ModuleRow]:
        """One row for each module that cost anything, in order of first use."""
        rows = [tally.read() for tally in self._rows.values()]
        nothing = OpCounts()
        return [row for row in rows if (row.ops, row.dense_ops) != (nothing, nothing)]

    def total(self) -> OpCounts:
        """The sum of all rows."""
        return OpCounts.sum(row.ops for row in self.rows())

    def report(
        self,
        profile: str | EnergyProfile = "horowitz-45nm-fp32",
        *,
        baseline: "str | EnergyReport" = "dense",
        per: str = "token",
        tokens: int | None = None,
        samples: int | None = None,
    ) -> EnergyReport:
        """The counts so far, priced; see `EnergyReport.of`."""
        units = samples if per == "sample" else tokens
        return EnergyReport.of(
            self.run(), profile, baseline=baseline, per=per, units=units
        )

    # ---- the modules

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        frame = _Frame(module)
        if self._frames:
            frame.row = self._frames[-1].row
            frame.opaque = self._frames[-1].opaque
        if not frame.opaque and module in self._names:
            frame.row = self._row(module)
            frame.row.calls += self._looking
            frame.rule = find_module_rule(type(module))
            frame.opaque = frame.rule is not None
        self._frames.append(frame)

    def _leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        while self._frames:
            frame = self._frames.pop()
            if frame.module is module:
                # torch leaves the keyword arguments out where the forward raised
                if frame.rule and frame.row and len(rest) == 2 and self._looking:
                    self._price_module(frame, frame.rule, frame.row, args, *rest)
                return

    def _price_module(
        self,
        frame: _Frame,
        rule: ModuleRule,
        row: RowTally,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        def declare(spike_seq: Tensor, tensor: Tensor) -> Events:
            return self._declare(SpikeEvent(frame.module, spike_seq, tensor))

        self._calls += 1
        with self._pause():
            cost = rule(
                ModuleCall(frame.module, args, kwargs, output, frame.events, declare)
            )
            if cost is None:
                self._uncounted[type(frame.module).__name__] += 1
            else:
                row.add(cost)

    def _row(self, module: nn.Module) -> RowTally:
        name = self._names[module]
        if name not in self._rows:
            self._rows[name] = RowTally(name, module)
        return self._rows[name]

    # ---- the spikes

    def _hear(self, event: SpikeEvent) -> None:
        if self._looking and event.neuron in self._names:
            with self._pause():
                events = self._declare(event)
            if self._frames and self._frames[-1].module is event.neuron:
                self._frames[-1].events = events

    def _declare(self, event: SpikeEvent) -> Events:
        neuron, spike_seq, output = event
        name = self._names[neuron]
        if name not in self._firing:
            self._firing[name] = FiringTally(neuron)
        spike_seq = spike_seq.detach()
        events = self._firing[name].add(spike_seq)
        if spike_seq.shape == output.shape:
            train = SpikeTrain([spike_seq], "unit", events)
        elif len(spike_seq) == 1:
            train = SpikeTrain([spike_seq[0]], "unit", events)
        else:
            train = SpikeTrain(spike_seq.unbind(), _readout_of(neuron), events)
        self._trains.declare(output, train)
        return events

    # ---- the operations

    @property
    def _looking(self) -> bool:
        # -1 outside backward: a checkpointed block that runs again is not a second pass
        return not self._paused and torch._C._current_graph_task_id() == -1

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Our own arithmetic is not the model's."""
        paused, self._paused = self._paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._paused = paused

    def _see(
        self,
        mode: TorchDispatchMode,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run one operation, and count it; only the dispatch mode calls this."""
        frame = self._frames[-1] if self._frames else None
        if not self._looking or (frame is not None and frame.opaque):
            self._trains.drop_written(func, args, kwargs)
            return func(*args, **kwargs)
        rule = find_op_rule(func)
        if rule is None and not is_free(func) and is_composite(func):
            with mode:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        self._trains.drop_written(func, args, kwargs)
        self._trains.follow(func, args, kwargs, out)
        row = frame.row if frame else None
        if row is None:
            return out
        self._calls += 1
        cost = (
            rule(OpCall(func, args, kwargs, out, self._look_up(row))) if rule else None
        )
        if cost is not None:
            row.add(cost)
        elif rule is not None or not is_free(func):
            self._uncounted[str(func)] += 1
        return out

    def _look_up(self, row: RowTally) -> Callable[[object], SpikeTrain | None]:
        def spikes(tensor: object) -> SpikeTrain | None:
            train = self._trains.of(tensor)
            if train is not None:
                row.note_input(train)
            return train

        return spikes


def _readout_of(neuron: nn.Module) -> str:
    readout = getattr(neuron, "readout", None)
    if readout not in ("sum", "geometric"):
        raise ValueError(
            f"{type(neuron).__name__} declares several spike planes for one output, so "
            "it needs an attribute readout, 'sum' or 'geometric', that says what the "
            f"output is made of; got {readout!r}"
        )
    return str(readout)


class _CountingMode(TorchDispatchMode):
    """Hands every operation to the counter."""

    def __init__(self, counter: SpikeOpCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._counter._see(self, func, args, kwargs or {})
