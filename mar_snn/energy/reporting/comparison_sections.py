"""The parts of a report that hold it against something: memory, baselines, batches."""

import math

from mar_snn.energy.reporting.baselines import baselines, break_even
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.memory import traffic
from mar_snn.energy.reporting.prices import MEMORY_KINDS
from mar_snn.energy.reporting.sections import Section
from mar_snn.energy.reporting.statistics import batch_statistics
from mar_snn.energy.reporting.text import (
    data_size,
    interval,
    joules,
    percent,
    plain,
    times,
)

__all__ = ["baseline_section", "comparison_sections", "traffic_section"]


def comparison_sections(report: EnergyFigures) -> list[Section]:
    """Phases, traffic, baselines, break-even and statistics, those that there are."""
    sections = [
        _phase_section(report),
        traffic_section(report),
        baseline_section(report),
        _break_even_section(report),
        _statistics_section(report),
    ]
    return [section for section in sections if section.lines or section.notes]


def traffic_section(report: EnergyFigures) -> Section:
    """Compute energy, and the same with what has to be moved."""
    first = (
        "arithmetic only", "-", "-", "-", joules(report.energy_pj),
        joules(report.baseline_pj), times(report.ratio),
    )  # fmt: skip
    lines = [
        (
            line.assumption,
            MEMORY_KINDS[line.memory],
            data_size(line.moved_bytes),
            data_size(line.baseline_bytes),
            interval(*(joules(energy) for energy in line.energy_pj)),
            interval(*(joules(energy) for energy in line.baseline_pj)),
            interval(*(times(value) for value in line.ratio)),
        )
        for line in traffic(report)
    ]
    notes = []
    if not lines:
        notes.append(
            "no bytes were counted"
            if report.profile.memory
            else f"{report.profile.name} has no price of memory"
        )
    return Section(
        title="With the traffic of weights",
        header=("moved", "memory", "bytes", "dense bytes", "energy", "dense", "ratio"),
        lines=(first, *lines),
        console=("moved", "memory", "bytes", "energy", "dense", "ratio"),
        notes=tuple(notes),
    )


def baseline_section(report: EnergyFigures) -> Section:
    """The dense models that the spiking one is held against."""
    lines, notes = [], []
    for found in baselines(report):
        energy = value = "-"
        if found.energy_pj is not None and found.ratio is not None:
            energy = interval(*(joules(e) for e in found.energy_pj))
            value = interval(*(times(r) for r in found.ratio))
        if found.missing:
            notes.append(f"{found.name}: {found.missing}")
        lines.append((found.name, energy, joules(found.model_pj), value))
    return Section(
        title="Baselines, arithmetic only",
        header=("baseline", "energy", "spiking", "ratio"),
        lines=tuple(lines),
        notes=tuple(notes),
    )


# ---- pieces


def _phase_section(report: EnergyFigures) -> Section:
    phases = report.phases
    lines = [
        (
            phase or "outside of phases",
            f"{report.units_of_phase(phase):g}",
            joules(part.energy_pj),
            percent(part.share),
            joules(part.baseline_pj),
            times(part.ratio),
        )
        for phase, part in phases.items()
    ]
    return Section(
        title="Phases, each per unit of its own",
        header=("phase", f"{report.per}s", "energy", "share", "dense", "ratio"),
        lines=tuple(lines) if set(phases) - {""} else (),
    )


def _break_even_section(report: EnergyFigures) -> Section:
    found = break_even(report)
    if math.isnan(found.spikes_per_synapse):
        return Section(title="", header=(), lines=())
    here = found.spikes_per_synapse
    limits = [
        ("the projections alone", (found.compute, found.compute)),
        ("the whole model", (found.whole_model, found.whole_model)),
    ]
    if found.matched_bit is not None:
        limits.append(("against the quantised dense model", found.matched_bit))
    lines = [
        (
            name,
            interval(*(plain(limit) for limit in ends)),
            plain(here),
            "below" if here < ends[0] else "above" if here > ends[1] else "within",
        )
        for name, ends in limits
    ]
    return Section(
        title="Break-even of T·rate, arithmetic only",
        header=("spikes for each dense MAC", "break-even", "model", "stands"),
        lines=tuple(lines),
        notes=(
            f"If no neuron fired at all, dense / spiking would be "
            f"{times(found.ceiling)}: the rest is paid in any case.",
        ),
    )


def _statistics_section(report: EnergyFigures) -> Section:
    statistics = batch_statistics(report)
    written = {
        "energy_pj": ("spiking", joules, joules),
        "baseline_pj": (report.baseline, joules, joules),
        "ratio": ("ratio", times, plain),
    }
    lines = []
    for key, (name, write, write_std) in written.items():
        if key in statistics and statistics[key].n > 1:
            found = statistics[key]
            lines.append(
                (
                    name,
                    write(found.mean),
                    write_std(found.std) if found.std else "0",
                    interval(*(write(end) for end in found.ci95)),
                )
            )
    batches = len(report.batches)
    missing = f"No spread over batches: {batches or 'none'} known."
    return Section(
        title=f"Over {batches} batches",
        header=(f"per {report.per}", "mean", "std", "95 % interval"),
        lines=tuple(lines),
        notes=() if lines else (missing,),
    )
