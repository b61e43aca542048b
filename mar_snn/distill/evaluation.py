"""How well a model predicts held-out text, and how near it stays to its teacher."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mar_snn.distill.checks import check_boundaries
from mar_snn.distill.data import collate
from mar_snn.spiking import SITES, evaluating

__all__ = ["alignment_error", "perplexity", "relative_distance"]


@torch.no_grad()
def perplexity(
    model: Any,
    rows: Dataset,
    *,
    batch_size: int = 8,
    desc: str | None = "Evaluating",
) -> float:
    """Exp of the mean negative log-likelihood of every token that has one before it.

    The first token of a row has none, nor the first of a text where rows keep texts
    apart.

    Args:
        model: a causal language model of transformers.
        rows: packed rows (`mar_snn.distill.data.pack`).
        batch_size: rows evaluated at once.
        desc: what the progress bar says; None for no bar.

    Raises:
        ValueError: where no token has one before it, or the rows keep texts apart and
            the model cannot.
    """
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    tokens = torch.zeros((), dtype=torch.long, device=model.device)
    with evaluating(model):
        for inputs, labels in _batches(rows, batch_size, desc, model):
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(
                logits.float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
            )
            total += losses.double().sum()
            tokens += (labels[:, 1:] != -100).sum()
    if not tokens:
        raise ValueError(
            f"{len(rows)} rows hold no token that is predicted from one before it: "
            "give longer rows, with labels other than -100"
        )
    # a diverged model's is infinite, which math.exp would not say
    return (total / tokens).exp().item()


def relative_distance(
    student: Float[Tensor, "*batch channels"], teacher: Float[Tensor, "*batch channels"]
) -> Float[Tensor, "*batch"]:
    """||student - teacher|| / ||teacher|| over the channels, 0 where both are 0."""
    distance = torch.linalg.vector_norm(student - teacher, dim=-1)
    size = torch.linalg.vector_norm(teacher, dim=-1)
    return torch.where(distance == 0, 0.0, distance / size)


@torch.no_grad()
def alignment_error(
    student: Any,
    teacher: Any,
    rows: Dataset,
    *,
    batch_size: int = 8,
    desc: str | None = "Aligning",
) -> dict[str, float]:
    """The temporal alignment error of a student, by site.

    Both models read the same tokens. At every token, `relative_distance` compares what
    enters the student's projection behind a slot with what enters the teacher's; the
    error of a site is the mean over tokens and layers.

    Args:
        student: a Llamba, spiking or dense.
        teacher: a Llamba of the same shape.
        rows: packed rows (`mar_snn.distill.data.pack`).
        batch_size: rows compared at once.
        desc: what the progress bar says; None for no bar.
    """
    total = dict.fromkeys(SITES, 0.0)
    count = 0
    with (
        evaluating(student),
        evaluating(teacher),
        _projection_inputs(student) as ours,
        _projection_inputs(teacher) as theirs,
    ):
        for inputs, _ in _batches(rows, batch_size, desc, student):
            check_boundaries(inputs, teacher=teacher)
            for model in (student, teacher):
                there = {k: v.to(model.device) for k, v in inputs.items()}
                model(**there, use_cache=False)
            real = inputs.get("attention_mask", inputs["input_ids"] + 1) != 0
            for (site, layer), x in ours.items():
                wanted = theirs[site, layer].to(x.device)
                distance = relative_distance(x.float(), wanted.float())
                total[site] += distance[real].sum().item()
            count += int(real.sum()) * len(student.backbone.layers)
    if not count:
        raise ValueError(f"{len(rows)} rows hold no token to compare the models at")
    return {site: error / count for site, error in total.items()}


@contextmanager
def _projection_inputs(model: Any) -> Iterator[dict[tuple[str, int], Tensor]]:
    """(site, layer) -> what entered its projection in the last forward pass."""
    inputs: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int], _projection: nn.Module, args: tuple[Tensor]) -> None:
        inputs[key] = args[0]

    with ExitStack() as hooks:
        for index, layer in enumerate(model.backbone.layers):
            for site, (owner, _, projection) in SITES.items():
                module = getattr(getattr(layer, owner), projection)
                hook = module.register_forward_pre_hook(partial(keep, (site, index)))
                hooks.callback(hook.remove)
        yield inputs


def _batches(
    rows: Dataset,
    batch_size: int,
    desc: str | None,
    model: Any,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """What a model takes, and the labels."""
    loader = DataLoader(rows, batch_size, collate_fn=collate)
    for batch in tqdm(loader, desc=desc, disable=desc is None):
        check_boundaries(batch, model=model)
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        yield inputs, labels
