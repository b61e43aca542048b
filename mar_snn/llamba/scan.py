"""The selective state-space scan of Llamba in forms that agree, behind one function.

    S[t] = a[t] S[t-1] + x[t] ⊗ B[t]        a[t] = exp(log_decay[t]), per head
    y[t] = S[t] C[t]

which is Mamba-2's state-space duality (arXiv 2405.21060) with the decay taken from the
token alone and the input not scaled by it (Llamba, arXiv 2502.14458). `scan` is the one
function: kernels where there are some, or else the chunked form, or one step for one
token. `LlambaScan` adds the skip D x[t].

Several documents may stand in one row: `seq_idx` numbers the document of each token,
from left to right, and the state starts from zero at the first token of each. Only the
first document goes on from a state that is given; the last one leaves the state.

B batch · L tokens · H heads · G groups of heads that share B and C · P head size ·
N state size · Q chunk. The arithmetic is float32, float64 where the input is.

A product of decays below exp(-40) counts as none in the chunked form: CPUs compute many
times slower with numbers below the smallest normal one, which products of such decays
reach. What is left out of y[t] is at most exp(-40) = 4e-18 of |C[t]| times the sum of
all |B[s]| |x[s]|, and of |S[0]|; float64 rounds at 1e-16.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mar_snn.llamba.cache import overwritable
from mar_snn.llamba.scan_backends import (
    check_scan_backend,
    choose_scan_backend,
    fla_scan,
    mamba_ssm_scan,
)

__all__ = [
    "LlambaScan",
    "scan",
    "ssd_chunked",
    "ssd_matrix",
    "ssd_sequential",
    "ssd_step",
]

#: Chunk length on a CPU: the result does not depend on it, the time does.
CPU_CHUNK = 32

#: Logarithm of the smallest product of decays that is not taken for zero.
_LOG_OF_NOTHING = -40.0


def scan(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    state: Float[Tensor, "B H P N"] | None = None,
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
    """(y, last state) by the backend that `choose_scan_backend` names.

    The state is float32, float64 where x is; y too, but for fla's, which is of x's
    dtype. One token may overwrite `state`, see `ssd_step`.
    """
    name = choose_scan_backend(backend, x.device.type, x.dtype)
    if name == "fla":
        return fla_scan(x, b, c, log_decay, state, seq_idx=seq_idx)
    if x.shape[1] == 1:
        return ssd_step(x, b, c, log_decay, state)
    if name == "mamba_ssm":
        return mamba_ssm_scan(x, b, c, log_decay, state, seq_idx=seq_idx)
    return ssd_chunked(x, b, c, log_decay, state, seq_idx=seq_idx)


def ssd_step(
    x: Float[Tensor, "B 1 H P"],
    b: Float[Tensor, "B 1 G N"],
    c: Float[Tensor, "B 1 G N"],
    log_decay: Float[Tensor, "B 1 H"],
    state: Float[Tensor, "B H P N"] | None = None,
) -> tuple[Float[Tensor, "B 1 H P"], Float[Tensor, "B H P N"]]:
    """(y, state behind it) of one token.

    Where no gradient is recorded and nothing is compiled, the state behind the token
    takes the place of `state` in memory, and addresses stay for CUDA graphs.
    """
    x, b, c, log_decay, state = _in_float(x, b, c, log_decay, state)
    x, b, c, decay = (
        t.squeeze(1)
        for t in (
            x,
            _to_heads(b, x.shape[2]),
            _to_heads(c, x.shape[2]),
            log_decay.exp(),
        )
    )
    decay = decay[..., None, None]
    state = state.mul_(decay) if overwritable(state) else state * decay
    state = state.addcmul_(x[..., None], b[..., None, :])
    # not state @ c[..., None]: on a CPU that takes three times as long
    return (state * c[:, :, None]).sum(-1)[:, None], state


def ssd_sequential(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    state: Float[Tensor, "B H P N"] | None = None,
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
    """(y, last state) by the recurrence, token by token: the definition."""
    x, b, c, log_decay, state = _in_float(x, b, c, log_decay, state)
    b, c = (_to_heads(t, x.shape[2]) for t in (b, c))
    decay = log_decay.exp()
    if seq_idx is not None:
        starts = seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0
        decay = decay.masked_fill(starts[..., None], 0)
    outputs = []
    for x_t, b_t, c_t, a_t in zip(
        x.unbind(1), b.unbind(1), c.unbind(1), decay.unbind(1), strict=True
    ):
        state = a_t[..., None, None] * state + x_t[..., None] * b_t[..., None, :]
        outputs.append((state @ c_t[..., None]).squeeze(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    return y, state


def ssd_matrix(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B H L L"]:
    """The matrix M with y = M x, M[t, s] = (C[t]·B[s]) a[s+1] … a[t] for s ≤ t.

    It is zero where s and t belong to different documents.
    """
    x, b, c, log_decay, _ = _in_float(x, b, c, log_decay, None)
    b, c = (_to_heads(t, x.shape[2]).transpose(1, 2) for t in (b, c))
    seq_idx = None if seq_idx is None else seq_idx[:, None]
    return (c @ b.mT) * _decay_matrix(_running_sum(log_decay.transpose(1, 2)), seq_idx)


def ssd_chunked(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    state: Float[Tensor, "B H P N"] | None = None,
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
    chunk_size: int = CPU_CHUNK,
) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
    """(y, last state) with matrix products inside chunks and the recurrence between."""
    length = x.shape[1]
    x, b, c, log_decay, state = _in_float(x, b, c, log_decay, state)
    b, c = (_to_heads(t, x.shape[2]) for t in (b, c))
    # a padded token has x = 0 and decay 1: it changes neither y nor the state
    x, b, c, log_decay = (_to_chunks(t, chunk_size) for t in (x, b, c, log_decay))
    total = _running_sum(log_decay)
    from_start, to_end = total, total[..., -1:] - total
    if seq_idx is not None:
        seq_idx, entered = _documents_of_chunks(seq_idx, chunk_size)
        # the log of a decay of zero: no document sees another
        from_start = from_start.masked_fill(seq_idx != entered, -torch.inf)
        to_end = to_end.masked_fill(seq_idx != seq_idx[..., -1:], -torch.inf)
    from_start, to_end = _decay(from_start), _decay(to_end)
    y = ((c @ b.mT) * _decay_matrix(total, seq_idx)) @ x
    added = (x * to_end[..., None]).mT @ b
    entering = []
    # unbind, not added[:, i]: the backward of an index fills a whole tensor with zeros
    for added_n, a_n in zip(
        added.unbind(1), from_start[..., -1].unbind(1), strict=True
    ):
        entering.append(state)
        state = torch.addcmul(added_n, a_n[..., None, None], state)
    if entering:
        reading, entered = from_start[..., None] * c, torch.stack(entering, dim=1).mT
        # y + reading @ entered, without another tensor of this size
        y = torch.baddbmm(*(t.flatten(0, 2) for t in (y, reading, entered))).view_as(y)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], state


def _in_float(
    x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All in float32, or float64 where x is; a missing state is zero."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if state is None:
        batch, _, heads, head_size = x.shape
        state = x.new_zeros(batch, heads, head_size, b.shape[-1], dtype=dtype)
    return x.to(dtype), b.to(dtype), c.to(dtype), log_decay.to(dtype), state.to(dtype)


def _to_heads(t: Tensor, heads: int) -> Tensor:
    """[B, L, G, N] -> [B, L, H, N]: head h reads group h // (H / G)."""
    return t if t.shape[2] == heads else t.repeat_interleave(heads // t.shape[2], dim=2)


def _to_chunks(t: Tensor, chunk_size: int) -> Tensor:
    """[B, L, H, ...] -> [B, chunks, H, Q, ...], zeros behind the last token."""
    if padding := -t.shape[1] % chunk_size:
        t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, padding))
    return t.unflatten(1, (-1, chunk_size)).transpose(2, 3).contiguous()


def _documents_of_chunks(
    seq_idx: Int[Tensor, "B L"], chunk_size: int
) -> tuple[Int[Tensor, "B chunks 1 Q"], Int[Tensor, "B chunks 1 1"]]:
    """Documents of every chunk's tokens, and the one whose state enters the chunk.

    Padded tokens belong to the last document, so that its state outlives them.
    """
    padding = -seq_idx.shape[1] % chunk_size
    padded = torch.cat([seq_idx, seq_idx[:, -1:].expand(-1, padding)], dim=1)
    chunks = padded.unflatten(1, (-1, chunk_size))[:, :, None]
    last = chunks[..., -1:]
    return chunks, torch.cat([chunks[:, :1, :, :1], last[:, :-1]], dim=1)


def _decay_matrix(
    total: Float[Tensor, "*batch Q"], seq_idx: Int[Tensor, "*documents Q"] | None
) -> Float[Tensor, "*batch Q Q"]:
    """exp(total[t] - total[s]) for s ≤ t of one document, else 0; total: running sums.

    The decay of a document's first token is in both sums or in neither.
    """
    steps = total.shape[-1]
    unseen: Bool[Tensor, "*documents Q Q"]
    unseen = torch.ones(steps, steps, dtype=torch.bool, device=total.device).triu(1)
    if seq_idx is not None:
        unseen = unseen | (seq_idx[..., :, None] != seq_idx[..., None, :])
    difference = total[..., :, None] - total[..., None, :]
    unseen = unseen | (difference <= _LOG_OF_NOTHING)
    return difference.masked_fill_(unseen, -torch.inf).exp_()


def _running_sum(log_decay: Float[Tensor, "*batch Q"]) -> Float[Tensor, "*batch Q"]:
    """Sums along the last axis; what is no decay at all counts as exp(-40).

    So one token's minus infinity leaves the digits of the others' decays.
    """
    return log_decay.clamp_min(_LOG_OF_NOTHING).cumsum(-1)


def _decay(log_decay: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(log_decay), zero up to exp(-40): see the top of the file."""
    return log_decay.masked_fill(log_decay <= _LOG_OF_NOTHING, -torch.inf).exp()


class LlambaScan(nn.Module):
    """y[t] = S[t] C[t] + D x[t] with the decay a = sigmoid(-A_log) of Llamba's mixer.

    A module of its own, without parameters, so that counters can price it as a whole.

    Args:
        backend: "torch", "fla", "mamba_ssm", or "auto" for the first of the last three
            that can run on the tensors of a call.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: its package is not installed.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        check_scan_backend(backend)
        self.backend = backend

    def forward(
        self,
        x: Float[Tensor, "B L H P"],
        b: Float[Tensor, "B L G N"],
        c: Float[Tensor, "B L G N"],
        a_log: Float[Tensor, "B L H"],
        d: Float[Tensor, " H"],
        state: Float[Tensor, "B H P N"] | None = None,
        seq_idx: Int[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
        """(y in x's dtype, last state in float32); one token may overwrite `state`."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            # exp(-softplus(A)) = sigmoid(-A)
            log_decay = F.logsigmoid(-a_log.to(wide))
            y, state = scan(
                x, b, c, log_decay, state, seq_idx=seq_idx, backend=self.backend
            )
            y = y + d.to(y.dtype)[:, None] * x
        return y.to(x.dtype), state
