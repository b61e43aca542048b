"""What a student is trained for: the terms of SBDS for one batch of both models."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mar_snn.distill.checks import check_boundaries
from mar_snn.distill.chunked import chunked_bidirectional_kl
from mar_snn.distill.config import SBDSConfig
from mar_snn.distill.features import FeatureAlignment
from mar_snn.distill.head_loss import HeadLoss
from mar_snn.distill.losses import (
    BidirectionalKL,
    bidirectional_kl,
    common_vocabulary,
    mean_over_layers,
)
from mar_snn.distill.sites import FiringRates, SiteWarmup

__all__ = ["Objective", "ObjectiveTerms"]

#: Scores of one batch from which on "auto" never makes all of them: 256 MiB in float32.
_MANY_SCORES = 2**26


class ObjectiveTerms(NamedTuple):
    """The loss of a batch and what it is made of."""

    loss: Float[Tensor, ""]
    #: each a mean over tokens, without its weight
    terms: dict[str, Float[Tensor, ""]]
    #: what the student's forward pass returned
    outputs: Any


class Objective:
    """The SBDS loss between a student and its teacher, each run once a batch.

    Use it inside `attached()`; where gradients are checkpointed, backward must come
    before the block ends.

    Args:
        student: a causal language model of transformers.
        teacher: another one.
        args: the weights and options of the loss.
        tokenizer: says how many words exist where the heads have different numbers and
            `args.vocab_size` does not say it.

    Raises:
        ValueError: where vocabularies, blocks or norms of the two do not fit, or
            `args.logit_loss` is "chunked" and the logits are not the head's alone.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        args: SBDSConfig,
        tokenizer: Any = None,
    ) -> None:
        self.student, self.teacher, self.args = student, teacher, args
        heads = [model.get_output_embeddings().weight for model in (student, teacher)]
        words = args.vocab_size
        if words is None and len(heads[0]) != len(heads[1]) and tokenizer is not None:
            words = len(tokenizer)
        self._words = common_vocabulary(len(heads[0]), len(heads[1]), words)
        self.alignment: FeatureAlignment | None = None
        if args.feature_weight > 0:
            self.alignment = FeatureAlignment(
                student,
                teacher,
                points=args.feature_points,
                distance=args.feature_distance,
                layers=args.feature_layers,  # type: ignore[arg-type]  # a dict by now
            )
            if args.teacher_forcing_steps and self.alignment.projections:
                raise ValueError(
                    "teacher_forcing_steps needs blocks that read features of the "
                    "teacher's width: set it to 0 for a student of another width"
                )
        self.rates = None if args.firing_rate_target is None else FiringRates(student)
        self.warmup = SiteWarmup(student, args.spiking_warmup_steps)
        self._divergence: dict[str, Any] = {
            "alpha": args.alpha,
            "beta": args.beta,
            "temperature": args.temperature,
            "divergence": args.divergence,
            "mixture": args.mixture,
            "vocab_size": self._words,
        }
        #: of the chunked loss
        self.backend = "auto"
        self._heads = None if args.logit_loss == "dense" else HeadLoss(student, teacher)
        if args.logit_loss == "chunked" and self._heads and self._heads.obstacle:
            raise ValueError(
                f"logit_loss='chunked' cannot be had: {self._heads.obstacle}; set it "
                "to 'dense', or to 'auto', which takes what can be had"
            )
        self._attached = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks in place inside the block; a block inside such a block is none."""
        if self._attached:
            yield
            return
        with ExitStack() as stack:
            for part in (self.alignment, self.rates, self.warmup, self._heads):
                if part is not None:
                    stack.enter_context(part.attached())
            self._attached = True
            try:
                yield
            finally:
                self._attached = False
                self.clear()

    def at(self, step: int) -> None:
        """Prepare for a step of training, counted from 0."""
        self.warmup.at(step)
        if self.alignment is not None:
            forced = step < self.args.teacher_forcing_steps
            self.alignment.teacher_forcing = forced

    def clear(self) -> None:
        """Drop what was kept of the last batch."""
        for part in (self.alignment, self.rates, self._heads):
            if part is not None:
                part.clear()

    def __call__(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        labels: Int[Tensor, "batch length"],
        num_items: Tensor,
        *,
        needs_logits: bool = False,
    ) -> ObjectiveTerms:
        """The loss of a batch.

        Args:
            model: the student, as it is wrapped for training.
            inputs: what both models take.
            labels: already shifted; -100 does not count.
            num_items: what sums over tokens are divided by.
            needs_logits: whether the outputs must hold the logits of all tokens.
        """
        args, mask = self.args, labels != -100
        self.clear()
        heads = None if needs_logits else self._heads_for(labels.numel())
        options = {"use_cache": False} | ({"logits_to_keep": 1} if heads else {})
        check_boundaries(inputs, student=self.student, teacher=self.teacher)
        with torch.no_grad():
            device = self.teacher.device
            there = {name: value.to(device) for name, value in inputs.items()}
            wanted = self.teacher(**there, **options)
        compare: dict[str, Any] = {
            "labels": labels,
            "num_items": num_items,
            **self._divergence,
        }
        if heads:
            compare["backend"] = self.backend
            heads.compare_with(partial(chunked_bidirectional_kl, **compare))
        outputs = model(**inputs, **options)
        if heads:
            divergence = heads.divergence
        else:
            logits = wanted.logits.to(labels.device)
            divergence = bidirectional_kl(outputs.logits, logits, **compare)
        loss, *divergences = divergence
        terms = dict(zip(BidirectionalKL._fields[1:], divergences, strict=True))
        if self.alignment is not None:
            distances = self.alignment.distances
            terms["features"] = mean_over_layers(distances, mask, num_items)
            loss = loss + args.feature_weight * terms["features"]
        target = args.firing_rate_target
        if self.rates is not None and target is not None and model.training:
            distances = self.rates.distances(target)
            terms["firing"] = mean_over_layers(distances, mask, num_items)
            loss = loss + args.firing_rate_weight * terms["firing"]
        return ObjectiveTerms(loss, terms, outputs)

    def _heads_for(self, tokens: int) -> HeadLoss | None:
        """What compares so many tokens without their logits; None: the logits do."""
        if self._heads is None or self._heads.obstacle:
            return None
        many = tokens * self._words >= _MANY_SCORES
        return self._heads if many or self.args.logit_loss == "chunked" else None
