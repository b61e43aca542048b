"""How far the student's next-token distribution is from the teacher's, and the slope.

With p the teacher, q the student and mixtures m = c p + (1 - c) q of both, every loss
is α KL(p‖m) + β KL(q‖m'), where m has the share c = a of the teacher and m' c = b:

    sbds   a = 0, b = 1          KL(p‖q) and KL(q‖p), MAR (arXiv 2601.21503)
    skew   a = λ, b = 1 - λ      skewed divergences, DistiLLM (arXiv 2402.03898)
    jsd    a = b = π             generalised Jensen-Shannon, GKD (arXiv 2306.13649)

In d = log p - log q, with l = log(m / q) and u = (1 - c)(q / m - 1),

    KL(p‖m) = E_p[d - l]         ∂/∂z = (1 - c)(q - p) + q E_p[u] - p u
    KL(q‖m) = -E_q[l]            ∂/∂z = q (-l - u - KL(q‖m) + E_q[u])

for the student's logits z. Each of these terms is exactly 0 where d is: what rounding
leaves of a gradient that should vanish is blown up to full steps by an optimiser that
divides by its size.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.distill.heads import LogitTransform

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "RowKernel",
    "compare",
    "compare_rows",
    "make_divergence",
]

#: The divergences and the mixture of each where none is given; see `make_divergence`.
DIVERGENCES = {"sbds": 0.0, "skew": 0.1, "jsd": 0.5}


class Divergence(NamedTuple):
    """α KL(p‖m) + β KL(q‖m') of the module's first lines."""

    alpha: float
    beta: float
    #: the teacher's share of m, and of m'; they are 0 and 1, or both between
    forward_share: float
    reverse_share: float

    @property
    def mixed(self) -> bool:
        """Whether the references are mixtures and not q and p themselves."""
        return self.forward_share > 0


def make_divergence(
    name: str, mixture: float | None, alpha: float, beta: float
) -> Divergence:
    """The divergence of that name.

    Raises:
        ValueError: an unknown name, or a mixture that the divergence does not have.
    """
    if name not in DIVERGENCES:
        raise ValueError(
            f"divergence must be one of {', '.join(DIVERGENCES)}, got {name!r}"
        )
    if mixture is None:
        mixture = DIVERGENCES[name]
    elif name == "sbds":
        raise ValueError(
            f"divergence='sbds' has no mixture, got {mixture}: leave it out, or choose "
            "divergence='skew' or 'jsd'"
        )
    elif not 0 < mixture < 1:
        raise ValueError(f"mixture must be between zero and one, got {mixture}")
    other = mixture if name == "jsd" else 1 - mixture
    return Divergence(alpha, beta, mixture, other)


def compare(
    log_q: Float[Tensor, "*tokens vocab"],
    log_p: Float[Tensor, "*tokens vocab"],
    divergence: Divergence,
    *,
    slope: bool,
) -> tuple[Float[Tensor, "terms=3 *tokens"], Float[Tensor, "*tokens vocab"] | None]:
    """Loss, KL(p‖q) and KL(q‖p) of each token; the loss's slope along the logits.

    Both arguments are overwritten.
    """
    gap = log_p - log_q
    p, q = log_p.exp_(), log_q.exp_()
    alpha, beta, forward_share, reverse_share = divergence
    forward_kl, reverse_kl = (p * gap).sum(-1), -(q * gap).sum(-1)
    if not divergence.mixed:
        terms = torch.stack(
            [alpha * forward_kl + beta * reverse_kl, forward_kl, reverse_kl]
        )
        if not slope:
            return terms, None
        grad = gap.add_(reverse_kl[..., None]).mul_(q).mul_(-beta)
        # the difference first: fused into one operation it would not be exactly zero
        return terms, grad.add_(q.sub_(p), alpha=alpha)
    # l of the module's first lines, for both mixtures; u is `excess`
    above = _log_mixture(gap, forward_share)
    loss = alpha * (p * gap.sub(above)).sum(-1)
    above_too = _log_mixture(gap, reverse_share)
    reverse = -(q * above_too).sum(-1)
    terms = torch.stack([loss + beta * reverse, forward_kl, reverse_kl])
    if not slope:
        return terms, None
    excess = above.neg_().expm1_().mul_(1 - forward_share)
    grad = q * (p * excess).sum(-1, keepdim=True) - excess.mul_(p)
    grad = grad.add_(q - p, alpha=1 - forward_share).mul_(alpha)
    above_too.neg_()
    excess = torch.expm1(above_too).mul_(1 - reverse_share)
    level = (q * excess).sum(-1, keepdim=True) - reverse[..., None]
    return terms, grad.addcmul_(above_too.sub_(excess).add_(level), q, value=beta)


def _log_mixture(
    gap: Float[Tensor, "*tokens vocab"], share: float
) -> Float[Tensor, "*tokens vocab"]:
    """The log of (c p + (1 - c) q) / q, from log p - log q; 0 < c < 1."""
    # seen from the larger of p and q, where the exponential cannot overflow
    of_smaller = gap.new_full((), share).where(gap <= 0, 1 - share)
    return gap.abs().neg_().expm1_().mul_(of_smaller).log1p_().add_(gap.clamp(min=0))


@runtime_checkable
class RowKernel(Protocol):
    """The loss and its slope on a tile of head outputs, one token a row."""

    def __call__(
        self,
        student: Float[Tensor, "rows vocab"],
        teacher: Float[Tensor, "rows vocab"],
        row_weights: Float[Tensor, " rows"] | None,
        divergence: Divergence,
        transforms: tuple[LogitTransform, LogitTransform],
        temperature: float,
    ) -> Float[Tensor, "3 rows"]:
        """Loss, KL(p‖q) and KL(q‖p) of each row of outputs of the two heads.

        With `row_weights`, `student` is overwritten with the gradient of the weighted
        sum of the losses. Nothing else is promised of what both hold afterwards.
        """


def compare_rows(
    student: Float[Tensor, "rows vocab"],
    teacher: Float[Tensor, "rows vocab"],
    row_weights: Float[Tensor, " rows"] | None,
    divergence: Divergence,
    transforms: tuple[LogitTransform, LogitTransform],
    temperature: float,
) -> Float[Tensor, "3 rows"]:
    """What `RowKernel` promises, in PyTorch."""
    unit, height = _bend_(student, transforms[0])
    _, teacher_height = _bend_(teacher, transforms[1])
    terms, slope = compare(
        (student * (height / temperature)).log_softmax(-1),
        (teacher * (teacher_height / temperature)).log_softmax(-1),
        divergence,
        slope=row_weights is not None,
    )
    if row_weights is not None and slope is not None:
        slope.mul_((row_weights * (unit * height / temperature))[:, None])
        if transforms[0].soft_cap is not None:
            # tanh' = 1 - tanh², and student holds the tanh
            slope.addcmul_(slope * student, student, value=-1.0)
        student.copy_(slope)
    return terms


def _bend_(z: Tensor, transform: LogitTransform) -> tuple[float, float]:
    """Replace z by tanh(unit · z) where there is a cap, else leave it, with unit = 1.

    Returns unit, and the height that makes logits of what z holds now.
    """
    scale, cap = transform.scale, transform.soft_cap
    if cap is None:
        return 1.0, scale
    z.mul_(scale / cap).tanh_()
    return scale / cap, cap
