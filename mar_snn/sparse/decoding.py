"""optimize_for_decoding: a spiking model whose projections read what fired."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

from mar_snn.hosts.slots import owners
from mar_snn.neurons.backends import requested_backend
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.hooks import hand_over_hooks
from mar_snn.sparse.kernels import has_native, runs_native
from mar_snn.sparse.linear import DenseLinear, EventLinear
from mar_snn.spiking import Coder, coders, projections

__all__ = ["DecodingPlan", "PlannedShape", "optimize_for_decoding"]

#: dtypes of weights that a product by PyTorch takes
_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class PlannedShape:
    """How the projections of one shape are read.

    Attributes:
        inputs, outputs: of the projection.
        count: projections of this shape.
        kernel: "C", "Triton", or "PyTorch" where there is neither.
        break_even: density above which a dense product is faster, 1 for none.
        megabytes: of the weights of one projection.
    """

    inputs: int
    outputs: int
    count: int
    kernel: str
    break_even: float
    megabytes: float


@dataclass(frozen=True, kw_only=True)
class DecodingPlan:
    """What `optimize_for_decoding` made of a model."""

    shapes: tuple[PlannedShape, ...]
    weights: str
    head: str

    def __str__(self) -> str:
        lines = [
            f"{s.count} x [{s.inputs} -> {s.outputs}], {s.megabytes:.1f} MB each: "
            f"{s.kernel}, event-driven up to a density of {s.break_even:.2f}"
            for s in self.shapes
        ]
        return "\n".join([*lines, f"weights: {self.weights}; LM head: {self.head}"])


@torch.no_grad()
def optimize_for_decoding(
    model: Any,
    *,
    weights: str = "same",
    head: str = "same",
    break_even: float | None = None,
    max_rows: int = 4,
) -> DecodingPlan:
    """Make steps of few tokens read only the weights of neurons that fired; in place.

    Every projection behind a coder becomes an `EventLinear`, the LM head a
    `DenseLinear`, and on a CPU that has a C compiler the coders run in C. Logits stay
    the same to rounding of the sums, unless weights are rounded to int8. Passes of more
    than `max_rows` tokens and passes with gradients run as before. Coders whose
    thresholds change later, and reloaded parameters, are followed; new projections are
    not.

    Args:
        model: a spiking model, `spikify`'s or a loaded one, on its device.
        weights: "same" dtype, or "int8" with a scale for each input: half of the bytes
            of bfloat16 again. The model can then no longer be saved or trained.
        head: "same" or "int8" for the LM head, which reads a dense input: it is the
            part that spikes do not make faster.
        break_even: the density above which a projection is dense; None measures it on
            this machine for each shape, which takes a second or two. Where a GPU's
            measured value is below the density of a layer, leave the layer dense: a
            GPU cannot know before it has started.
        max_rows: tokens of a step, over the whole batch: the weights of the neurons
            that fired for any of them are read, so the gain fades with their number.

    Raises:
        ValueError: for a model without coders, or whose projections are adapted,
            quantized, offloaded or optimized already, and for other values of the
            arguments. The model is then as it was.
    """
    found = _readable(model)
    if head not in ("same", "int8"):
        raise ValueError(f"head must be 'same' or 'int8', got {head!r}")
    if break_even is not None and not 0.0 <= break_even <= 1.0:
        raise ValueError(f"break_even is a density, 0 to 1, got {break_even}")
    if any(projection.weight.is_cpu for _, projection, _ in found):
        has_native()  # compiles, and says why it cannot, before anything is changed
    shapes: dict[tuple[int, int], list[EventLinear]] = defaultdict(list)
    made: dict[tuple[int, int], EventLinear] = {}
    for name, projection, coder in tqdm(found, desc="weights by input", leave=False):
        # layers that are tied in the model read the same copy
        key = id(projection.weight), id(projection.bias)
        if key not in made:
            linear = EventLinear(projection, weights=weights, max_rows=max_rows)
            shapes[linear.in_features, linear.out_features].append(linear)
            made[key] = linear
        _put(model, name, projection, made[key])
        if isinstance(coder, ATMNCoder):
            _run_in_c(coder)
    for name, embeddings in _head(model):
        _lay_out(model, name, embeddings, head, max_rows)
    planned = []
    for (inputs, outputs), linears in shapes.items():
        measured = measure_break_even(linears) if break_even is None else break_even
        for linear in linears:
            linear.break_even = measured
        stored = linears[0].stored
        planned.append(
            PlannedShape(
                inputs=inputs,
                outputs=outputs,
                count=len(linears),
                kernel=_kernel(stored),
                break_even=measured,
                megabytes=stored.numel() * stored.element_size() / 1e6,
            )
        )
    return DecodingPlan(shapes=tuple(planned), weights=weights, head=head)


def measure_break_even(linears: Sequence[EventLinear], seed: int = 0) -> float:
    """The density at which reading by input takes as long as a dense product.

    Between its times at densities 1/4 and 3/4 the kernel's is taken to be linear. The
    layers of one shape take turns, so that their weights come from memory and not from
    a cache that decoding would find filled by other layers.
    """
    generator = torch.Generator().manual_seed(seed)
    stored = linears[0].stored
    dtype = torch.float32 if linears[0].weight is None else linears[0].weight.dtype
    drawn = torch.rand(len(linears), 1, linears[0].in_features, generator=generator)
    low, high, dense = (
        _seconds(linears, (drawn < density).to(stored.device, dtype), event_driven)
        for density, event_driven in ((0.25, True), (0.75, True), (1.0, False))
    )
    if high <= low:
        return float(dense >= high)
    return min(max(0.25 + 0.5 * (dense - low) / (high - low), 0.0), 1.0)


def _seconds(linears: Sequence[EventLinear], x: Tensor, event_driven: bool) -> float:
    """Of one product, the median over a few rounds through all layers."""
    kept = [linear.break_even for linear in linears]
    for linear in linears:
        linear.break_even = 1.0 if event_driven else -1.0

    def round_of_all() -> None:
        for linear, row in zip(linears, x, strict=True):
            linear(row)

    timer = Timer(
        "run()", globals={"run": round_of_all}, num_threads=torch.get_num_threads()
    )
    timer.timeit(1)
    rounds = max(3, 16 // len(linears))
    seconds = sorted(timer.timeit(1).mean for _ in range(rounds))[rounds // 2]
    for linear, before in zip(linears, kept, strict=True):
        linear.break_even = before
    return seconds / len(linears)


def _head(model: Any) -> list[tuple[str, nn.Linear]]:
    """The name of the LM head and itself, where there is one."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    named = model.named_modules()
    return [(n, m) for n, m in named if m is head and isinstance(m, nn.Linear)]


def _lay_out(
    model: nn.Module, name: str, embeddings: nn.Linear, head: str, max_rows: int
) -> None:
    # on a GPU the kernel that reads int8 is the event-driven one: every input fires
    kind = EventLinear if head == "int8" and embeddings.weight.is_cuda else DenseLinear
    new = kind(embeddings, weights=head, max_rows=max_rows)
    _put(model, name, embeddings, new)


def _put(model: nn.Module, name: str, old: nn.Linear, new: nn.Linear) -> None:
    """`new` in the place of `old`, with its hooks."""
    hand_over_hooks(old, new)
    model.set_submodule(name, new)


def _readable(model: nn.Module) -> list[tuple[str, nn.Linear, Coder]]:
    """Every projection behind a coder, when all of them can be laid out by input.

    Raises:
        ValueError: where there is none, or one that cannot.
    """
    if not any(True for _ in coders(model)):
        raise ValueError(
            f"{type(model).__name__} has no coders, so no weight could be left unread: "
            "call spikify and calibrate, or load a spiking checkpoint"
        )
    if wrapped := _wrapped(model):
        raise ValueError(
            f"something stands around {len(wrapped)} projections or coders of this "
            f"model, such as {wrapped[0]}: merge adapters first (merge_and_unload), "
            "and load the model unquantized"
        )
    found = list(projections(model))
    for name, linear in [*(fed[:2] for fed in found), *_head(model)]:
        if isinstance(linear, EventLinear):
            raise ValueError(
                "this model is optimized already; load it again for other options"
            )
        if why := _obstacle(linear):
            raise ValueError(f"{name} cannot be laid out for decoding: {why}")
    return found


def _wrapped(model: nn.Module) -> list[str]:
    """What is not a linear layer behind a coder, or not a coder, but holds one."""
    found = []
    for owner in owners(model):
        for site, fed in owner.plan.sites.items():
            slot = owner.plan.slot(site)
            held = getattr(owner.module, slot, None)
            if held is None or not any(True for _ in coders(held)):
                continue
            parts = {name: getattr(owner.module, name) for name in fed}
            wrong = {
                name: m for name, m in parts.items() if not isinstance(m, nn.Linear)
            }
            if not isinstance(held, Coder):
                wrong[slot] = held
            found += [
                f"{owner.name}.{name}".lstrip(".") + f" ({type(module).__name__})"
                for name, module in wrong.items()
            ]
    return found


def _obstacle(linear: nn.Linear) -> str:
    """Why the weights of a linear layer cannot be laid out anew; "" if they can."""
    weight = linear._parameters.get("weight")
    if weight is None:
        return (
            "its weight is computed from others; make it permanent first, by "
            "torch.nn.utils.parametrize.remove_parametrizations, prune.remove or "
            "remove_weight_norm"
        )
    if weight.is_meta:
        return "its weights have no memory here; load the model without offloading"
    plain = type(weight.detach()) is Tensor and weight.dtype in _PLAIN
    if not plain or type(linear).forward is not nn.Linear.forward:
        return (
            f"it is a {type(linear).__name__} of {weight.dtype}; load the model "
            "unquantized and unsharded, weights='int8' rounds them here"
        )
    return ""


def _run_in_c(coder: ATMNCoder) -> None:
    """Where nobody has chosen a backend, and C can be one."""
    node = coder.neuron
    if requested_backend(node.backend) == "auto" and node.a.is_cpu and has_native():
        node.backend = "native"


def _kernel(stored: Tensor) -> str:
    if stored.is_cuda:
        return "Triton"
    x = torch.empty(0, dtype=stored.dtype if stored.is_floating_point() else None)
    return "C" if runs_native(x, stored) else "PyTorch"
