"""SpikeOpCounter: counts what the forward passes of a model would cost."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mar_snn.energy.accumulate import Ledger
from mar_snn.energy.counts import CountedRun, ModuleRow, OpCounts
from mar_snn.energy.reporting.profiles import EnergyProfile
from mar_snn.energy.reporting.report import EnergyReport
from mar_snn.energy.rules.registry import CountingSettings
from mar_snn.energy.watch import Watch

__all__ = ["SpikeOpCounter"]


class SpikeOpCounter:
    """Counts the operations of a model's forward passes inside its `with` blocks.

    Several blocks add up. Only what runs inside the forward of `model` is counted, and
    only forward passes: not backward, not the sampling around the model. It works under
    every grad mode and under autocast, counts functional calls in the module whose
    forward makes them, and changes no result.

        with SpikeOpCounter(model) as counter:
            model(input_ids)
            with counter.phase("decode"):
                model(next_id)
        report = counter.report(profile="horowitz-45nm-fp32")

    Args:
        model: the model; its module names are the names of the rows. A module that is
            used in several places is one row, under its first name.
        spikes: "declared": a tensor holds spikes because a neuron of the model said so;
            nothing is read from the device before the results are. "inferred": because
            of its values, see `mar_snn.energy.inference`; declarations are not used,
            and values are read as the model runs. For models of other packages.
        padding: "exclude" or "include" products with padded zeros.
        causal: "exact" counts the pairs that a causal mask leaves, "full" all pairs.
        scan: "recurrent" or "chunked": the form of Llamba's scan that is counted.
        depth: rows of modules with more parts in their name than this are pooled, group
            by group, into the row of the ancestor that has so many. None pools nothing.

    Raises:
        ValueError: a setting that is none of the above.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        spikes: str = "declared",
        padding: str = "exclude",
        causal: str = "exact",
        scan: str = "recurrent",
        depth: int | None = None,
    ) -> None:
        if depth is not None and depth < 0:
            raise ValueError(
                f"depth is a number of name parts, 0 or more, got {depth}: 0 is one "
                "row a group, None one row a module"
            )
        self.model = model
        self.settings = CountingSettings(
            spikes=spikes, padding=padding, causal=causal, scan=scan
        )
        self.depth = depth
        self._ledger = Ledger()
        self._watch = Watch(model, self._ledger, self.settings, depth)
        self._running: ExitStack | None = None

    def __enter__(self) -> "SpikeOpCounter":
        if self._running is not None:
            raise RuntimeError(
                "this counter is counting already: leave its block first, or count "
                "with a second SpikeOpCounter"
            )
        with ExitStack() as stack:
            self._watch.start(stack)
            self._running = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside the block, forward passes belong to this part of the run.

        Their rows and batches carry the name; what runs outside of all phases has "".
        A pass belongs to the phase that it starts in.

        Raises:
            ValueError: without a name.
            RuntimeError: inside another phase.
        """
        if not name:
            raise ValueError(
                "a phase needs a name, such as 'decode', got ''; what runs outside of "
                "all phases has that name"
            )
        if self._watch.phase:
            raise RuntimeError(
                f"phase {name!r} starts inside phase {self._watch.phase!r}, and a pass "
                "can only belong to one: leave the outer block first"
            )
        self._watch.phase = name
        try:
            yield
        finally:
            self._watch.phase = ""

    # ---- results

    def run(self) -> CountedRun:
        """Everything counted so far, as integers; waits for the device."""
        parameters = list(self.model.parameters())
        watch, settings = self._watch, self.settings
        with watch.pause():
            firing = {name: tally.read() for name, tally in watch.firing.items()}
            batches = self._ledger.read_batches()
        return CountedRun(
            rows=tuple(self.rows()),
            firing=firing,
            calls=watch.calls,
            uncounted=dict(watch.uncounted),
            model={
                "class": type(self.model).__name__,
                "parameters": sum(p.numel() for p in parameters),
                "dtypes": sorted({str(p.dtype) for p in parameters}),
            },
            batches=batches,
            settings={
                "spikes": settings.spikes,
                "padding": settings.padding,
                "causal": settings.causal,
                "depth": "all" if self.depth is None else str(self.depth),
                **{key: ", ".join(values) for key, values in watch.notes.items()},
            },
        )

    def rows(self) -> list[ModuleRow]:
        """One row for each module that cost anything, in order of first use.

        A module that ran in several phases has a row in each.
        """
        with self._watch.pause():
            return self._ledger.read_rows()

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
        **more: Any,
    ) -> EnergyReport:
        """The counts so far, priced; see `EnergyReport.of`, also for `more`."""
        units = samples if per == "sample" else tokens
        return EnergyReport.of(
            self.run(), profile, baseline=baseline, per=per, units=units, **more
        )
