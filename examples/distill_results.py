"""What examples/distill_llamba.py writes and prints when it is done."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from mar_snn import plots
from mar_snn.distill import SBDSTrainer
from mar_snn.energy import EnergyReport
from mar_snn.neurons import record_spikes
from mar_snn.spiking import coders

__all__ = ["result_table", "write_results"]

#: Tokens whose spikes the raster shows.
RASTER_TOKENS = 12


def write_results(
    output: Path,
    trainer: SBDSTrainer,
    sentence: list[int],
    report: EnergyReport,
    metrics: dict[str, Any],
) -> None:
    """Write results beside their place and move them there, metrics.json last; draw.

    What training made of the model may be beyond drawing: that loses no result.
    """
    staging = output / "unfinished"
    if trainer.is_world_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staging))
    if trainer.is_world_process_zero():
        report.to_json(staging / "energy.json")
        report.to_markdown(staging / "energy.md")
        text = json.dumps(metrics, indent=2)
        (staging / "metrics.json").write_text(text + "\n", encoding="utf-8")
        for path in sorted(staging.iterdir(), key=lambda p: p.name == "metrics.json"):
            path.replace(output / path.name)
        staging.rmdir()
    # all processes run the model, whose weights they may share
    raster = middle_spikes(trainer, sentence[:RASTER_TOKENS])
    if trainer.is_world_process_zero():
        draw(output, trainer, raster, report)


def middle_spikes(trainer: SBDSTrainer, sentence: list[int]) -> dict[str, Any]:
    """Spikes, tokens and title of the raster: the coder in the middle of the model."""
    neurons = list(coders(trainer.model))
    name, middle = neurons[len(neurons) // 2]
    ids = torch.tensor([sentence], device=trainer.model.device)
    spike_seq = record_spikes(trainer.model, input_ids=ids, use_cache=False)[middle]
    decode = trainer.processing_class.decode
    tokens = [
        decode(token).strip(" ").encode("unicode_escape").decode() for token in sentence
    ]
    # [T, 1, tokens, channels] -> [tokens · T, channels]
    raster = spike_seq[:, 0].transpose(0, 1).flatten(0, 1)
    return {"spikes": raster, "tokens": tokens, "title": name}


def draw(
    folder: Path, trainer: SBDSTrainer, raster: dict[str, Any], report: EnergyReport
) -> None:
    """energy.png, firing.png, raster.png, thresholds.png and training.png.

    What cannot be drawn is named on stderr, and no older picture stands for it.
    """
    thresholds = {
        name: coder.neuron.v_threshold.detach() for name, coder in coders(trainer.model)
    }
    spikes, tokens, title = raster.values()
    pictures = {
        "energy": lambda ax: plots.plot_energy(report, ax),
        "firing": lambda ax: plots.plot_firing_rates(report.firing, ax),
        "raster": lambda ax: plots.plot_spike_raster(
            spikes, ax, tokens=tokens
        ).set_title(title, loc="left"),
        "thresholds": lambda ax: plots.plot_thresholds(thresholds, ax),
        "training": lambda ax: plots.plot_training(trainer.state.log_history, ax),
    }
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        figure = Figure(figsize=(9, 5), layout="constrained")
        try:
            picture(figure.subplots())
        except ValueError as error:
            print(f"{path} is not drawn: {error}", file=sys.stderr)
        else:
            figure.savefig(path, dpi=120)


def result_table(metrics: dict[str, Any], report: EnergyReport, output: Path) -> Table:
    """The one table that says how it went."""
    table = Table(title="Dense teacher and spiking student", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    teacher, calibrated, distilled = metrics["perplexity"].values()
    steps = metrics["steps"]
    spans = metrics["energy_ratios"].items()
    spans = {name: span for name, span in spans if name.endswith(("bits", "dram"))}
    for label, value in {
        "held-out perplexity, dense teacher": f"{teacher:.2f}",
        "  spiking, calibrated": f"{calibrated:.2f} = {calibrated / teacher:.3f} x",
        f"  spiking, {steps} steps": f"{distilled:.2f} = {distilled / teacher:.3f} x",
        "firing rate per micro-step": f"{metrics['firing_rate']:.3f}",
        "sign balance of the spikes": f"{metrics['sign_balance']:+.3f}",
        "synaptic operations per token": f"{metrics['synops_per_token']:,.0f}",
        "modelled energy per token, dense": f"{report.baseline_pj / 1e6:.2f} µJ",
        "  spiking": f"{report.energy_pj / 1e6:.2f} µJ",
        "  dense / spiking": f"{metrics['energy_ratio']:.2f} x",
        "  without the LM head": f"{metrics['energy_ratio_without_lm_head']:.2f} x",
        **{f"  {n}": f"{a:.2f} to {b:.2f} x" for n, (a, b) in spans.items()},
        "time": f"{metrics['seconds']:.0f} s",
        "files": str(output),
    }.items():
        table.add_row(label, value)
    return table
