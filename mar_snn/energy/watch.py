"""What runs inside a model: its modules, its operations and the spikes between them.

Works below autograd, so it sees the operations that really run; composite operations
are taken apart under inference_mode too.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from mar_snn.energy.accumulate import Key, Ledger, RowTally, numbers_of
from mar_snn.energy.declarations import SpikeTrains
from mar_snn.energy.dispatch import Arguments, Ear
from mar_snn.energy.firing import FiringTally
from mar_snn.energy.groups import group_of
from mar_snn.energy.handling import Handling
from mar_snn.energy.inference import Inference, Open, Site, Spikes
from mar_snn.energy.moves import MoveCall
from mar_snn.energy.rules.registry import (
    CountingSettings,
    ModuleCall,
    OpCall,
    RuleOfModule,
    find_module_rule,
)
from mar_snn.energy.spike_trains import Events, SpikeTrain
from mar_snn.energy.unseen import Unseen
from mar_snn.energy.weights import Weights
from mar_snn.energy.written_out import can_run_written_out, run_written_out
from mar_snn.neurons.spikes import SpikeEvent, listen_to_spikes

__all__ = ["Watch"]


class _Frame:
    """A module whose forward is running."""

    __slots__ = (
        "events",
        "fused",
        "module",
        "name",
        "numbers",
        "opaque",
        "row",
        "rule",
        "sealed",
    )

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        #: the innermost module of the model that runs, and where it is counted; None
        #: outside the model
        self.name = ""
        self.row: RowTally | None = None
        #: its module rule
        self.rule: RuleOfModule | None = None
        #: whether a rule prices the operations of this forward; those of all modules
        #: inside as well
        self.opaque = self.sealed = False
        #: whether a kernel computed this module as a whole
        self.fused = False
        #: what it declared
        self.events: Events | None = None
        #: how often each operation ran in it so far
        self.numbers: Counter[OpOverload] = Counter()


class Watch:
    """Sees every call inside a model and has it priced.

    Args:
        model: the model.
        ledger: takes the prices.
        settings: what is asked for.
        depth: parts of a row's name; None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        ledger: Ledger,
        settings: CountingSettings,
        depth: int | None,
    ) -> None:
        #: the phase that is on, and the one in which the pass started
        self.phase = self._phase_of_pass = ""
        #: neuron name -> how often it fired
        self.firing: dict[str, FiringTally] = {}
        #: calls of operations and of modules with a rule; those that had no price
        self.calls = 0
        self.uncounted: Counter[str] = Counter()
        #: what rules noted: key -> values in order of first use
        self.notes: dict[str, dict[str, None]] = {}
        self._model = model
        self._ledger = ledger
        self._settings = settings
        self._depth = depth
        self._inference = Inference() if settings.spikes == "inferred" else None
        self._names: dict[nn.Module, str] = {}
        #: the thread that is watched
        self._ear = Ear.here()
        self._forget()

    def _forget(self) -> None:
        self._frames: list[_Frame] = []
        self._trains, self._weights = SpikeTrains(), Weights()
        self._unseen = Unseen()
        self._rows: dict[tuple[nn.Module, str], RowTally] = {}
        #: the frame of the model itself, and of the outermost module of the model
        self._root: _Frame | None = None
        self._outermost: _Frame | None = None

    def start(self, stack: ExitStack) -> None:
        """Watch until `stack` is closed."""
        self._names = {module: name for name, module in self._model.named_modules()}
        self._ear = Ear.here()
        # a cast that was made before is a weight that nobody saw being made
        torch.clear_autocast_cache()
        stack.callback(self._stop)
        before = register_module_forward_pre_hook(self._enter_module)
        stack.callback(before.remove)
        after = register_module_forward_hook(
            self._leave_module, with_kwargs=True, always_call=True
        )
        stack.callback(after.remove)
        stack.enter_context(listen_to_spikes(self._hear))
        stack.callback(self._ear.leave, self)
        self._ear.join(self)

    def _stop(self) -> None:
        with self.pause():
            self._ledger.end_batch(whole=False)
        self._forget()

    # ---- the modules

    @property
    def _elsewhere(self) -> bool:
        """Whether this is another thread than the one that is watched."""
        return get_ident() != self._ear.thread

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        if self._elsewhere:
            if module is self._model and self._looking and not Ear.here().listeners:
                self.uncounted["a pass in another thread"] += 1
            return
        frame = _Frame(module)
        if self._frames:
            outer = self._frames[-1]
            frame.name, frame.row = outer.name, outer.row
            frame.opaque, frame.sealed = outer.opaque, outer.sealed
            frame.numbers = outer.numbers
        if not frame.sealed and module in self._names and self._looking:
            if self._outermost is None:
                self._outermost = frame
                self._weights.collect(self._model)
                self._phase_of_pass = self.phase
            if module is self._model and self._root is None:
                self._root = frame
                self._ledger.begin_batch(self._phase_of_pass)
            frame.name, frame.numbers = self._names[module], Counter()
            frame.row = self._row(module)
            frame.row.calls += 1
            frame.rule = find_module_rule(type(module))
            frame.opaque = frame.rule is not None
            frame.sealed = frame.rule is not None and frame.rule.whole
        self._frames.append(frame)

    def _leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if self._elsewhere:
            return
        # torch leaves the keyword arguments out where the forward raised
        whole = len(rest) == 2
        while self._frames:
            frame = self._frames.pop()
            found = frame.module is module
            if found and frame.rule and frame.row and whole and self._looking:
                self._price_module(frame, frame.rule, frame.row, args, *rest)
            if found and frame.fused and whole:
                frame.fused = frame.opaque = False
                self._frames.append(frame)
                with self._ear.only(self):
                    run_written_out(module, args, rest[0])
                self._frames.pop()
            if frame is self._root:
                if found and whole:
                    self._list(self._unseen.returned(rest[1]))
                with self.pause():
                    self._ledger.end_batch(whole=found and whole)
                self._root = None
            if frame is self._outermost:
                with self.pause():
                    self._ledger.flush()
                self._outermost = None
            if found:
                return

    def _row(self, module: nn.Module) -> RowTally:
        key = (module, self._phase_of_pass)
        if key not in self._rows:
            name = self._names[module]
            group = group_of(name, module)
            pooled = ".".join(name.split(".")[: self._depth])
            self._rows[key] = self._ledger.row(
                pooled, self._model.get_submodule(pooled), group, self._phase_of_pass
            )
        return self._rows[key]

    def _price_module(
        self,
        frame: _Frame,
        rule: RuleOfModule,
        row: RowTally,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        def declare(
            spike_seq: Tensor, tensor: Tensor, /, readout: str | None = None
        ) -> Events:
            # a foreign node may scale its spikes; the scale folds into the next weights
            units = spike_seq if readout == "graded" else spike_seq.sign()
            return self._declare(SpikeEvent(frame.module, units, tensor), readout)

        self.calls += 1
        self._list(self._unseen.taken((*args, *kwargs.values())))
        with self.pause():
            cost = rule.price(
                ModuleCall(
                    frame.module,
                    args,
                    kwargs,
                    output,
                    frame.events,
                    declare,
                    partial(self._spikes_for, row),
                    self._weights.__contains__,
                    self._settings,
                    self._note,
                )
            )
        if cost is None:
            self.uncounted[type(frame.module).__name__] += 1
        else:
            self._ledger.add(row, cost)

    # ---- the spikes

    def _hear(self, event: SpikeEvent) -> None:
        if event.neuron in self._names and not self._elsewhere and self._looking:
            with self.pause():
                events = self._declare(event)
            if self._frames and self._frames[-1].module is event.neuron:
                self._frames[-1].events = events

    def _declare(self, event: SpikeEvent, readout: str | None = None) -> Events:
        name = self._names[event.neuron]
        if name not in self.firing:
            self.firing[name] = FiringTally(event.neuron)
        train = self.firing[name].add(event, readout)
        if self._inference is None:
            self._trains.declare(event.output, train)
        return train.events

    def _spikes_for(self, row: RowTally, tensor: object) -> SpikeTrain | None:
        train = self._trains.of(tensor)
        if train is not None:
            row.note_input(train)
        return train

    # ---- the operations

    @property
    def _looking(self) -> bool:
        # -1 outside backward: a checkpointed block that runs again is not a second pass
        in_backward = torch._C._current_graph_task_id() != -1
        return self._ear.alone in (None, self) and not (self._ear.paused or in_backward)

    def pause(self) -> AbstractContextManager[None]:
        """Our own arithmetic is no model's."""
        return Ear.here().pause()

    def _note(self, key: str, value: str) -> None:
        self.notes.setdefault(key, {})[value] = None

    def wants(self) -> bool:
        """Whether the operations that run now are looked at."""
        sealed = bool(self._frames) and self._frames[-1].sealed
        return self._looking and not sealed

    def before(self, handling: Handling, call: Arguments) -> Callable[[Any], None]:
        """Learn of an operation that is going to run; returns what takes its result."""
        looking = self.wants()
        written = handling.writes.of(*call[1:])
        moves = written and looking and handling.move
        move = MoveCall(moves, *call) if moves else None
        known = self._trains.before_write(written, move)
        self._unseen.written(written)

        def after(out: Any) -> None:
            for tensor, spikes in known:
                self._trains.declare(tensor, spikes)
            if looking:
                self._see(handling, call, out)

        return after

    def _see(self, handling: Handling, call: Arguments, out: Any) -> None:
        """Have an operation priced that ran."""
        func, args, kwargs = call
        frame = self._frames[-1] if self._frames else None
        if handling.move:
            self._trains.follow(func, args, kwargs, out)
        if frame is None or frame.row is None:
            return
        self._weights.follow(args, kwargs, out)
        if frame.opaque:
            return
        if handling.fused and can_run_written_out(frame.module, args):
            frame.fused = frame.opaque = True
            return
        self.calls += 1
        inputs = (*args, *kwargs.values())
        self._list(self._unseen.follow(func, inputs, out, type(frame.module).__name__))
        if handling.rule is None:
            priced = handling.free
        else:
            priced = self._price(frame, frame.row, handling, (*call, out))
        if not priced:
            self.uncounted[str(func)] += 1

    def _price(
        self,
        frame: _Frame,
        row: RowTally,
        handling: Handling,
        call: tuple[OpOverload, tuple[Any, ...], dict[str, Any], Any],
    ) -> bool:
        """Have one operation priced; False where its rule has no answer."""

        def price(spikes: Spikes) -> "list[tuple[Key, int | Tensor]] | None":
            is_weight = self._weights.__contains__
            seen = OpCall(*call, spikes, is_weight, self._settings, self._note)
            cost = handling.rule(seen) if handling.rule else None
            if cost is None:
                return None
            return [*numbers_of(cost), *_columns(seen, handling.operands)]

        if self._inference is None:
            numbers = price(partial(self._spikes_for, row))
        else:
            frame.numbers[call[0]] += 1
            site = Site(frame.name, str(call[0]), frame.numbers[call[0]])
            found = self._inference.price(site, price, self._weights.__contains__)
            if isinstance(found, Open):
                self._ledger.defer(row, found.read)
                return True
            numbers = found
        for key, number in numbers or ():
            self._ledger.add_number(row, key, number)
        return numbers is not None

    def _list(self, modules: set[str]) -> None:
        """List what kernels did in these modules that torch did not see."""
        self.calls += len(modules)
        self.uncounted.update(f"a kernel unknown to torch, in {m}" for m in modules)


def _columns(
    call: OpCall, operands: tuple[int, int] | None
) -> "Iterator[tuple[Key, int | Tensor]]":
    """Inputs of a projection, and those that fired, where spikes meet weights."""
    if operands is None:
        return
    left, right = (call.args[i] for i in operands)
    for x, weight in ((left, right), (right, left)):
        if call.is_weight(weight) and (touched := call.touched(x)) is not None:
            yield ("columns", "all"), call.columns(x)
            yield ("columns", "touched"), touched
