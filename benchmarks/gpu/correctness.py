"""What is right: the tests on the device, and random cases of every backend."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from mar_snn.neurons import ops, reference
from mar_snn.neurons.backends import available_backends
from mar_snn.neurons.reference import membrane_dtype, readout_weights
from mar_snn.neurons.surrogate import KERNEL_SURROGATES

ROOT = Path(__file__).parents[2]
#: what runs on a GPU where there is one: Triton's interpreter has had the second half;
#: fla tunes its kernels for a minute, so its tests are the last
TESTS = (
    "tests/neurons/test_cuda_graph.py",
    "tests/neurons/test_cupy_kernels.py",
    "tests/neurons/test_interop.py",
    "tests/sparse/test_graph.py",
    "tests/test_spike_image.py",
    "tests/neurons/test_triton_kernels.py",
    "tests/sparse/test_triton_kernels.py",
    "tests/distill/test_triton_divergences.py",
    "tests/llamba/test_scan_backends.py",
)
#: of a line that pytest-xdist or pytest prints for a test
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
#: random cases of each backend; pytest has the rest of the time
CASES = 150

Outcome = tuple[list[Tensor], list[Tensor]]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Random cases of every backend, then the tests that run on this device."""
    backends = [n for n, why in available_backends(device).items() if not why]
    backends = [name for name in backends if name not in ("native", "torch")]
    draw = random.Random(0)
    # memory that is not written is NaN
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for seed in range(CASES):
        for backend in backends or ["torch"]:
            torch.manual_seed(seed)
            case, ours, theirs = random_case(device, backend, draw)
            try:
                why = difference(ours(), theirs())
            except Exception as error:  # noqa: BLE001  compilers fail in any way
                why = f"{type(error).__name__}: {error}"
            yield case | {"ok": not why} | ({"why": why} if why else {})
    if device.type == "cuda":
        yield from test_rows()


def test_rows() -> Iterator[dict[str, Any]]:
    """A row for each test as soon as it has run, and what pytest says of failures."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--color=no"]
    # what a newer library warns of is not what is asked here
    command += ["-W", "default", "-p", "no:cacheprovider"]
    if find_spec("xdist") is not None:  # most of the time is compilers'
        command += ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "load"]
    process = subprocess.Popen(
        [*command, *TESTS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    others: list[str] = []
    for line in process.stdout or ():
        if (found := OUTCOME.search(line)) and "::" in line:
            name = next(word for word in line.split() if "::" in word)
            outcome = found[1].lower()
            row = {"case": "test", "name": name, "outcome": outcome}
            yield row | {"ok": outcome in ("passed", "skipped")}
        else:
            others.append(line)
    if process.wait():
        text = "".join(others)
        yield {"case": "pytest", "ok": False, "why": text[-20_000:]}


def random_case(
    device: torch.device, backend: str, draw: random.Random
) -> tuple[dict[str, Any], Callable[[], Outcome], Callable[[], Outcome]]:
    """One operation on random numbers, its options drawn too: what, ours, theirs."""
    dtype = draw.choice(DTYPES)
    name = draw.choice(KERNEL_SURROGATES)
    steps, channels = draw.choice((1, 2, 4, 9)), draw.choice((1, 5, 64, 257, 1024))
    shape = (draw.choice((1, 3, 70)), channels)
    how = {
        "tau": draw.choice((0.5, 0.7, 2.0)),
        "fire_ratio": draw.choice((1.0, 2 / 3)),
        "detach_reset": draw.random() < 0.5,
        "surrogate_function": getattr(surrogate, name)(),
    }
    layout = draw.choice(("dense", "strided", "transposed", "expanded"))
    wide = membrane_dtype(dtype)
    case = {
        "case": draw.choice(("atmn_code", "multi_step")),
        "backend": backend,
        "dtype": str(dtype),
        "steps": steps,
        "shape": list(shape),
        "layout": layout,
        **{k: v for k, v in how.items() if k != "surrogate_function"},
        "surrogate": name,
    }
    if case["case"] == "atmn_code":
        if draw.random() < 0.5:
            case["surrogate"], how["surrogate_function"] = None, None
        x = laid_out(shape, layout, device, dtype)
        inputs = x, torch.rand(channels, device=device, dtype=wide) + 0.3
        weights = readout_weights("geometric", how["tau"], steps)

        def run(module: ModuleType, *leaves: Tensor, **by: str) -> Sequence[Tensor]:
            return [module.atmn_code(*leaves, weights, **how, **by)]

    else:
        how["store_v_seq"] = case["store_v_seq"] = draw.random() < 0.5
        x = laid_out((steps, *shape), layout, device, dtype)
        size = draw.choice(((1,), (channels,), (shape[0], 1)))
        v_threshold = torch.rand(size, device=device, dtype=wide) + 0.5
        inputs = x, torch.randn(shape, device=device, dtype=wide), v_threshold

        def run(module: ModuleType, *leaves: Tensor, **by: str) -> Sequence[Tensor]:
            return module.atmn_multi_step(*leaves, **how, **by)

    # the reference gets inputs as wide as its membrane: no gradient is rounded
    exact = x.to(wide), *inputs[1:]
    return (
        case,
        lambda: outcome(partial(run, ops, backend=backend), inputs, dtype),
        lambda: outcome(partial(run, reference), exact, dtype),
    )


def laid_out(
    shape: tuple[int, ...], layout: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Random numbers whose rows need not follow one another in memory."""
    if layout == "strided":
        wide = torch.randn(*shape[:-1], 2 * shape[-1] + 1, device=device)
        return (1.5 * wide).to(dtype)[..., 1::2]
    if layout == "transposed":
        turned = torch.randn(*reversed(shape), device=device)
        return (1.5 * turned).to(dtype).permute(*reversed(range(len(shape))))
    if layout == "expanded":
        one = torch.randn(1, *shape[1:], device=device)
        return (1.5 * one).to(dtype).expand(shape)
    return (1.5 * torch.randn(shape, device=device)).to(dtype)


def outcome(
    run: Callable[..., Sequence[Tensor | None]],
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
) -> Outcome:
    """Outputs, and the gradients of all inputs for one random loss."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = [out for out in run(*leaves) if out is not None]
    generator = torch.Generator(leaves[0].device).manual_seed(7)
    cotangents = [
        torch.randn(o.shape, device=o.device, generator=generator).to(dtype).to(o)
        for o in outputs
    ]
    return outputs, list(torch.autograd.grad(outputs, leaves, cotangents))


def difference(ours: tuple[list[Tensor], ...], theirs: tuple[list[Tensor], ...]) -> str:
    """In what they differ: outputs by a bit, gradients by more than rounding."""
    for index, (mine, other) in enumerate(zip(ours[0], theirs[0], strict=True)):
        if not torch.equal(mine, other.to(mine.dtype)):
            wrong = (mine != other.to(mine.dtype)).sum().item()
            return f"output {index}: {wrong} of {mine.numel()} differ"
    terms = theirs[1][0].numel()
    for index, (mine, other) in enumerate(zip(ours[1], theirs[1], strict=True)):
        # what enters is about 1, so a sum of n is off by some eps sqrt(n) at most,
        # however much of it cancels; and what is 16 bits is rounded once more
        slack = 64 * torch.finfo(other.dtype).eps * terms**0.5
        exact = 1e-12 if mine.dtype == torch.float64 else 2e-5
        share = max(torch.finfo(mine.dtype).eps, exact)
        distance = (mine.double() - other.double()).norm()
        if not distance <= share * other.norm() + slack:
            return f"gradient {index}: {(distance / other.norm()).item():.2g} away"
    return ""
