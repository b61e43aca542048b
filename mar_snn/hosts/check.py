"""Proves that a model which was made spiking runs through its coders in every mode."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mar_snn.hosts.plans import plan_of

__all__ = ["check_coders"]

#: Tokens of a reading: what a cache must bridge, and little to wait for.
_TOKENS = 4


@torch.no_grad()
def check_coders(model: nn.Module, coders: Mapping[str, nn.Module]) -> float:
    """How far reading tokens one by one is from reading them at once, in tolerances.

    A few tokens are read in train mode, in eval mode, and in eval mode with the last
    one from the cache of the others. Each coder must code every token each time. In the
    last reading it hands on what it made of the token in the one before, since a
    rounding error may flip a spike; what it reads must agree, and so must the logits.
    The model is left as it was: modes, buffers, random numbers.

    Raises:
        RuntimeError: where a coder is left out, or the readings differ.
        ValueError: for a part of a model that cannot be run by itself.
    """
    readings = _readings(model)
    with _as_it_was(model):
        model.train()
        _record(coders, readings.whole, "in train mode")
        model.eval()
        tape, output = _record(coders, readings.whole, "in eval mode")
        return _replay(coders, readings.steps, tape, output)


class _Readings(NamedTuple):
    """Two ways for a model to read the same tokens."""

    whole: Callable[[], Tensor]
    #: all but the last, then that one, where the model has a cache
    steps: Callable[[], Iterator[Tensor]]


def _readings(model: Any) -> _Readings:
    if hasattr(model, "get_base_model"):  # peft's, which hides the arguments
        model = model.get_base_model()
    takes = inspect.signature(model.forward).parameters
    inputs = _inputs(model, takes)
    if "inference_params" in takes:
        return _readings_of_mamba_ssm(model, inputs)
    any_name = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if not inputs.is_floating_point() and ("use_cache" in takes or any_name):
        return _readings_of_transformers(model, inputs, takes)
    return _Readings(lambda: _first(model(inputs)), lambda: iter(()))


def _inputs(model: Any, takes: Mapping[str, Any]) -> Tensor:
    """Token ids [1, L], or hidden states [1, L, D] for a module with a plan."""
    device = next(model.parameters()).device
    if plan_of(type(model)) is not None:
        linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
        ramp = torch.linspace(-2.0, 2.0, _TOKENS * linear.in_features, device=device)
        # neighbours differ, and so do tokens
        return (7.0 * ramp).sin().view(1, _TOKENS, -1).to(linear.weight.dtype)
    if "input_ids" in takes or hasattr(model, "get_input_embeddings"):
        ids = torch.arange(1, _TOKENS + 1, device=device)[None]
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        # of a vocabulary of fewer words, some come again
        return ids % getattr(embedding, "num_embeddings", _TOKENS + 1)
    raise ValueError(
        f"{type(model).__name__} takes no input_ids, so its coders cannot be checked: "
        "pass the whole model, or a single module that has a plan"
    )


def _first(output: Any) -> Tensor:
    """Logits or hidden states."""
    return output if isinstance(output, Tensor) else output[0]


def _readings_of_transformers(
    model: Any, ids: Tensor, takes: Mapping[str, Any]
) -> _Readings:
    def steps() -> Iterator[Tensor]:
        output = model(input_ids=ids[:, :-1], use_cache=True)
        yield _first(output)
        # what transformers calls it depends on the model, and from 5.24 on no longer
        named = output if isinstance(output, dict) else {}
        names = ("cache", "past_key_values", "cache_params")
        name = next((name for name in names if named.get(name) is not None), None)
        if name is None:
            return
        last = {"input_ids": ids[:, -1:], name: named[name]}
        if "position_ids" in takes:  # which not every model counts by itself
            last["position_ids"] = ids.new_tensor([[_TOKENS - 1]])
        yield _first(model(**last, use_cache=True))

    return _Readings(lambda: _first(model(input_ids=ids, use_cache=False)), steps)


def _readings_of_mamba_ssm(model: Any, inputs: Tensor) -> _Readings:
    def steps() -> Iterator[Tensor]:
        if getattr(model, "layer_idx", 0) is None:
            return  # a mixer by itself, which has no place in a cache
        remembered = SimpleNamespace(
            max_seqlen=_TOKENS,
            max_batch_size=1,
            seqlen_offset=0,
            batch_size_offset=0,
            key_value_memory_dict={},
            lengths_per_sample=None,
        )
        yield _first(model(inputs[:, :-1], inference_params=remembered))
        remembered.seqlen_offset = _TOKENS - 1
        yield _first(model(inputs[:, -1:], inference_params=remembered))

    return _Readings(lambda: _first(model(inputs)), steps)


#: coder -> what each of its calls read and handed on, [tokens, channels]
_Tape = dict[str, list[tuple[Tensor, Tensor]]]


def _record(
    coders: Mapping[str, nn.Module], whole: Callable[[], Tensor], when: str
) -> tuple[_Tape, Tensor]:
    """What passed through the coders, and the output."""
    tape: _Tape = {name: [] for name in coders}

    def hook(name: str, _: Any, args: tuple[Tensor], coded: Tensor) -> None:
        tape[name].append((args[0].flatten(0, -2), coded.flatten(0, -2)))

    with _hooked(coders, hook):
        output = whole()
    silent = [
        name
        for name, calls in tape.items()
        if not calls or any(len(read) != _TOKENS for read, _ in calls)
    ]
    if silent:
        raise RuntimeError(_bypassed(silent, when))
    return tape, output


def _replay(
    coders: Mapping[str, nn.Module],
    steps: Callable[[], Iterator[Tensor]],
    tape: _Tape,
    whole: Tensor,
) -> float:
    """How far reading step by step is from `tape` and `whole`, at most."""
    differences: dict[str, float] = {}
    start, stop = 0, _TOKENS - 1
    left = {name: iter(calls) for name, calls in tape.items()}

    def compare(name: str, found: Tensor, expected: Tensor) -> None:
        scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
        difference = ((found - expected).abs().max() / scale).item()
        differences.setdefault(name, 0.0)
        differences[name] = max(differences[name], difference / _tolerance(found))

    def hook(name: str, _: Any, args: tuple[Tensor], coded: Tensor) -> Tensor:
        read, call = args[0].flatten(0, -2), next(left[name], None)
        if call is None or len(read) != stop - start:
            raise RuntimeError(_bypassed([name], "while it reads from a cache"))
        compare(name, read, call[0][start:stop])
        return call[1][start:stop].view_as(coded)

    with _hooked(coders, hook):
        for output in steps():
            missed = [name for name, calls in left.items() if next(calls, None)]
            if missed:
                raise RuntimeError(_bypassed(missed, "while it reads from a cache"))
            if whole.dim() == 3:  # of every token, not of the whole text
                compare("the logits", output[:, -1], whole[:, stop - 1])
            start, stop = _TOKENS - 1, _TOKENS
            left = {name: iter(calls) for name, calls in tape.items()}
    off = {name: d for name, d in differences.items() if not d <= 1.0}
    if off:
        raise RuntimeError(
            "reading tokens one by one gives something else than reading them at once: "
            + ", ".join(f"{name} by {d:.1f} tolerances" for name, d in off.items())
        )
    return max(differences.values(), default=0.0)


def _tolerance(x: Tensor) -> float:
    """Half of the digits that a product has: a scan is float32 in a float64 model."""
    # accelerators may multiply float32 with the 10 bits of TF32
    kept = torch.finfo(torch.float32).eps if x.device.type == "cpu" else 2.0**-10
    return max(torch.finfo(x.dtype).eps, kept) ** 0.5


def _bypassed(names: list[str], when: str) -> str:
    return (
        f"no spikes from {', '.join(names)} {when}: another code path goes around "
        "these coders"
    )


@contextmanager
def _hooked(
    coders: Mapping[str, nn.Module], hook: Callable[..., Any]
) -> Iterator[None]:
    """Call `hook(name, coder, inputs, output)` after every call of a coder."""
    with ExitStack() as hooks:
        for name, coder in coders.items():
            handle = coder.register_forward_hook(partial(hook, name))
            hooks.callback(handle.remove)
        yield


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Leave modes, buffers and random numbers as they were before the block."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for buffer, value in buffers:
                buffer.copy_(value)
