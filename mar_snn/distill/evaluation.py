"""How well a language model predicts held-out text."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mar_snn.distill.data import collate

__all__ = ["perplexity"]


@torch.no_grad()
def perplexity(
    model: Any, rows: Dataset, *, batch_size: int = 8, desc: str = "Evaluating"
) -> float:
    """Exp of the mean negative log-likelihood of every token but the first of its row.

    Args:
        model: a causal language model of transformers.
        rows: packed rows (`mar_snn.distill.data.pack`).
        batch_size: rows evaluated at once.
        desc: what the progress bar says.
    """
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    tokens = 0
    for batch in tqdm(DataLoader(rows, batch_size, collate_fn=collate), desc=desc):
        ids = batch["input_ids"].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        total += losses.double().sum()
        tokens += losses.numel()
    model.train(training)
    return math.exp(total.item() / tokens)
