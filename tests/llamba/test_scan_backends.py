"""Which kernels scan, and that ours call them as they are documented."""

import logging
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mar_snn.llamba import (
    LlambaCache,
    LlambaConfig,
    LlambaForCausalLM,
    scan_backends,
)
from mar_snn.llamba.scan import LlambaScan, scan, ssd_sequential
from mar_snn.llamba.scan_backends import (
    ENVIRONMENT,
    available_scan_backends,
    check_scan_backend,
    choose_scan_backend,
    fla_scan,
    mamba_ssm_scan,
)
from tests.bounds import assert_as_exact

CALLS: list[str] = []


def gla(name: str):
    """What fla documents of its functions, by the recurrence."""

    def run(
        q,  # [B, T, H, K]
        k,
        v,  # [B, T, H, V]
        g=None,  # [B, T, H]
        g_gamma=None,
        scale=None,
        initial_state=None,  # [N, H, K, V] of N sequences
        output_final_state=False,
        cu_seqlens=None,  # [N + 1]
    ):
        CALLS.append(name)
        assert q.dtype == k.dtype == v.dtype
        assert g.dtype == torch.float32
        assert q.shape == k.shape
        assert q.shape[:3] == v.shape[:3] == g.shape
        scale = k.shape[-1] ** -0.5 if scale is None else scale
        if cu_seqlens is None:
            rows = [tuple(t[i : i + 1] for t in (v, k, q, g)) for i in range(len(v))]
        else:
            assert len(v) == 1
            lengths = cu_seqlens.diff().tolist()
            rows = list(zip(*(t.split(lengths, 1) for t in (v, k, q, g)), strict=True))
        outputs, states = [], []
        for i, (v_i, k_i, q_i, g_i) in enumerate(rows):
            state = None if initial_state is None else initial_state[i : i + 1].mT
            y, last = ssd_sequential(v_i, k_i, scale * q_i, g_i, state)
            outputs.append(y)
            states.append(last.mT)
        y = torch.cat(outputs, 0 if cu_seqlens is None else 1).to(q.dtype)
        return y, torch.cat(states) if output_final_state else None

    return run


def mamba_chunk_scan_combined(
    x,  # [B, L, H, P]
    dt,  # [B, L, H]
    A,  # [H]
    B,  # [B, L, G, N]
    C,
    chunk_size,
    D=None,
    initial_states=None,  # [B, H, P, N]
    seq_idx=None,  # [B, L]
    dt_softplus=False,
    return_final_states=False,
):
    """What mamba_ssm documents, by the recurrence: dt scales decay and input."""
    CALLS.append("mamba_ssm")
    if seq_idx is not None:  # the state is that of the document 0
        assert seq_idx.dtype == torch.int32
        assert seq_idx[:, 0].eq(0).all()
    y, last = ssd_sequential(
        x * dt[..., None], B, C, A * dt, initial_states, seq_idx=seq_idx
    )
    return (y, last) if return_final_states else y


@pytest.fixture
def packages(monkeypatch):
    """Both packages, as far as the scan sees them."""
    functions = {
        "fla.ops.simple_gla": {
            "chunk_simple_gla": gla("chunk"),
            "fused_recurrent_simple_gla": gla("recurrent"),
        },
        "mamba_ssm.ops.triton.ssd_combined": {
            "mamba_chunk_scan_combined": mamba_chunk_scan_combined
        },
    }
    for name, contents in functions.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:end]))
            module.__spec__ = ModuleSpec(module.__name__, None)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(contents)
    CALLS.clear()


@pytest.fixture(autouse=True)
def _nothing_is_chosen_yet(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    scan_backends._found.cache_clear()
    scan_backends._import_error.cache_clear()
    yield
    scan_backends._found.cache_clear()
    scan_backends._import_error.cache_clear()


def missing(monkeypatch, *names: str) -> None:
    """Make packages that may be there look as if they were not."""
    real = find_spec
    monkeypatch.setattr(
        scan_backends, "find_spec", lambda name: None if name in names else real(name)
    )


# ---- the choice


def test_on_a_cpu_it_is_pytorch_even_with_kernels_installed(packages, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert choose_scan_backend("auto", "cpu", torch.float32) == "torch"
    assert caplog.messages == ["Llamba scans on cpu with 'torch'"]


def test_on_a_gpu_it_is_the_first_that_can_run(packages, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert choose_scan_backend("auto", "cuda", torch.bfloat16) == "fla"
    missing(monkeypatch, "fla")
    assert choose_scan_backend("auto", "cuda", torch.float32) == "mamba_ssm"
    scan_backends._found.cache_clear()
    missing(monkeypatch, "fla", "mamba_ssm")
    assert choose_scan_backend("auto", "cuda", torch.float32) == "torch"
    assert "'fla': it is not installed (pip install 'mar-snn[kernels]')" in caplog.text
    assert "Llamba scans on cuda with 'torch'" in caplog.text


def test_a_package_that_does_not_import_is_passed_over_and_says_why(
    packages, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    # what an undefined symbol of a compiled extension looks like
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    assert choose_scan_backend("auto", "cuda", torch.float32) == "mamba_ssm"
    assert "importing fla.ops.simple_gla failed: ModuleNotFoundError" in caplog.text
    with pytest.raises(RuntimeError, match=r"cannot run here: importing fla\.ops"):
        choose_scan_backend("fla", "cuda", torch.float32)


def test_float64_is_scanned_by_pytorch(packages):
    assert choose_scan_backend("auto", "cuda", torch.float64) == "torch"
    with pytest.raises(RuntimeError, match="compute in float32, the tensors are float"):
        choose_scan_backend("fla", "cuda", torch.float64)


def test_what_was_asked_for_by_name_runs_or_raises(packages, monkeypatch):
    assert choose_scan_backend("mamba_ssm", "cuda", torch.float32) == "mamba_ssm"
    x = torch.randn(1, 2, 1, 3)
    with pytest.raises(RuntimeError, match="run on GPUs, the tensors are on cpu"):
        scan(x, x, x, x[..., 0], backend="fla")
    with pytest.raises(ValueError, match="must be one of 'auto', 'torch', 'fla'"):
        check_scan_backend("cuda")
    for name, extra in (("fla", "kernels"), ("mamba_ssm", "mamba")):
        missing(monkeypatch, name)
        with pytest.raises(RuntimeError, match=rf"pip install 'mar-snn\[{extra}\]'"):
            LlambaScan(name)


def test_the_environment_stands_for_auto_and_for_nothing_else(packages, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "torch")
    assert choose_scan_backend("auto", "cuda", torch.float32) == "torch"
    assert choose_scan_backend("fla", "cuda", torch.float32) == "fla"
    monkeypatch.setenv(ENVIRONMENT, "fla")
    with pytest.raises(RuntimeError, match="the tensors are on cpu"):
        choose_scan_backend("auto", "cpu", torch.float32)


def test_every_backend_says_what_keeps_it_from_running(packages, monkeypatch):
    assert available_scan_backends("cuda") == {"fla": "", "mamba_ssm": "", "torch": ""}
    missing(monkeypatch, "mamba_ssm")
    assert available_scan_backends("cpu") == {
        "fla": "its kernels run on GPUs, the tensors are on cpu",
        "mamba_ssm": "it is not installed (pip install 'mar-snn[mamba]')",
        "torch": "",
    }


def test_an_export_holds_no_kernel(packages, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert choose_scan_backend("auto", "cuda", torch.float32) == "torch"
    with pytest.raises(RuntimeError, match="'fla' cannot be exported"):
        choose_scan_backend("fla", "cuda", torch.float32)


def test_a_graph_is_not_broken_by_a_kernel_that_no_one_asked_for(packages, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_scan_backend("auto", "cuda", torch.float32) == "torch"
    assert choose_scan_backend("fla", "cuda", torch.float32) == "fla"


def test_a_model_exports(model, ids):
    # in inference: with a cache the graph would have to hold it
    exported = torch.export.export(model, (ids,), {"use_cache": False})
    result = exported.module()(ids, use_cache=False)
    torch.testing.assert_close(result.logits, model(ids, use_cache=False).logits)


def test_the_choice_reaches_every_layer_and_is_not_saved(packages, config, tmp_path):
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    for model in (
        LlambaForCausalLM.from_pretrained(tmp_path, scan_backend="mamba_ssm"),
        LlambaForCausalLM(LlambaConfig(**config.to_dict(), scan_backend="mamba_ssm")),
    ):
        layers = model.backbone.layers
        assert [layer.mixer.scan.backend for layer in layers] == ["mamba_ssm"] * 2
    config.scan_backend = "fla"
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    assert "scan_backend" not in (tmp_path / "config.json").read_text()
    again = LlambaForCausalLM.from_pretrained(tmp_path)
    assert again.backbone.layers[0].mixer.scan.backend == "auto"
    with pytest.raises(ValueError, match="scan_backend must be one of"):
        LlambaForCausalLM.from_pretrained(tmp_path, scan_backend="cuda")


# ---- the calls


def problem(length: int, groups: int, dtype=torch.float32) -> dict[str, Tensor]:
    tensors = {
        "x": torch.randn(2, length, 4, 3),
        "b": torch.randn(2, length, groups, 5),
        "c": torch.randn(2, length, groups, 5),
        "log_decay": -torch.rand(2, length, 4) - 0.05,
        "state": torch.randn(2, 4, 3, 5),
    }
    return {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("kernel", [fla_scan, mamba_ssm_scan])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 9, 64, 71])
@pytest.mark.parametrize("documents", [False, True])
def test_kernels_called_as_documented_are_the_recurrence_with_every_gradient(
    packages, kernel, groups, length, documents
):
    p = problem(length, groups)
    # the second row is one document, and the numbers need not begin at zero
    seq_idx = None
    if documents:
        seq_idx = torch.tensor([[3] * 4 + [4] + [5] * 80, [3] * 85])[:, :length]
    results = []
    for form, dtype in (
        (kernel, torch.float32),
        (ssd_sequential, torch.float32),
        (ssd_sequential, torch.float64),
    ):
        leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in p.items()}
        y, state = form(**leaves, seq_idx=seq_idx)
        loss = (y * y.detach().cos()).sum() + (state * state.detach().sin()).sum()
        gradients = torch.autograd.grad(loss, tuple(leaves.values()))
        results.append((y, state, *gradients))
    assert_as_exact(*results)


def test_without_a_state_kernels_start_from_zero(packages):
    p = problem(7, 4)
    del p["state"]
    expected = ssd_sequential(**p)
    exact = ssd_sequential(**{name: t.double() for name, t in p.items()})
    for kernel in (fla_scan, mamba_ssm_scan):
        assert_as_exact(kernel(**p), expected, exact)


def test_fla_runs_its_recurrence_where_that_is_faster_and_its_chunks_elsewhere(
    packages,
):
    for length in (1, 64, 65):
        fla_scan(**problem(length, 4))
    assert CALLS == ["recurrent", "recurrent", "chunk"]


def test_fla_keeps_sixteen_bit_inputs_and_decays_in_float32(packages):
    y, state = fla_scan(**problem(9, 2, torch.bfloat16))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_a_decay_of_nearly_one_divides_by_no_zero(packages):
    # dt = -log a = 1e-9, below the smallest: a is taken for exp(-1e-6)
    p = problem(100, 4)
    p["log_decay"] = torch.full_like(p["log_decay"], -1e-9, requires_grad=True)
    y, state = mamba_ssm_scan(**p)
    expected, last = ssd_sequential(**p)
    (y.sum() + state.sum()).backward()
    assert p["log_decay"].grad.isfinite().all()
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(state, last, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("backend", ["fla", "mamba_ssm"])
def test_a_model_scans_and_generates_with_the_kernels(
    packages, model, ids, backend, monkeypatch
):
    exact = model(ids, use_cache=False).logits
    expected = model.float()(ids, use_cache=False).logits
    written = model.generate(ids, max_new_tokens=5, do_sample=False)
    monkeypatch.setattr(scan_backends, "_obstacle", lambda *_: "")
    for layer in model.backbone.layers:
        layer.mixer.scan.backend = backend
    logits = model(ids, use_cache=False).logits
    assert_as_exact([logits], [expected], [exact])
    assert model.generate(ids, max_new_tokens=5, do_sample=False).equal(written)
    assert ("mamba_ssm" in CALLS) == (backend == "mamba_ssm")


@pytest.mark.parametrize("backend", ["fla", "mamba_ssm"])
def test_padding_leaves_no_trace_in_the_kernels_state(
    packages, model, ids, backend, monkeypatch
):
    monkeypatch.setattr(scan_backends, "_obstacle", lambda *_: "")
    for layer in model.float().backbone.layers:
        layer.mixer.scan.backend = backend
    cache = LlambaCache(2)
    model(ids[:, :5], cache=cache)
    states = [state[0].clone() for state in cache.ssm_states]
    # of 60 tokens and of one, all padding in the first row and none in the second
    mask = torch.tensor([[0], [1]])
    model(ids[:, 5:65], mask.expand(-1, 60), cache=cache)
    logits = model(ids[:, 65:66], mask, cache=cache).logits[1, 0]
    for state, before in zip(cache.ssm_states, states, strict=True):
        assert state[0].equal(before)
    expected = model(ids[1:, :66], use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("fla") is None or find_spec("triton") is None,
    reason="needs flash-linear-attention: pip install 'mar-snn[kernels]'",
)
def test_flas_own_kernels_are_the_recurrence_in_tritons_interpreter():
    script = Path(__file__).parent / "interpreted_fla.py"
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fla", "mamba_ssm"])
@pytest.mark.parametrize("length", [1, 40, 300])
def test_on_a_gpu_the_kernels_are_the_recurrence(backend, length):
    if obstacle := available_scan_backends("cuda")[backend]:
        pytest.skip(obstacle)
    tensors = {
        "x": torch.randn(2, length, 4, 64),
        "b": torch.randn(2, length, 2, 64) / 8,
        "c": torch.randn(2, length, 2, 64),
        "log_decay": -torch.rand(2, length, 4) - 0.05,
        "state": torch.randn(2, 4, 64, 64),
    }
    p = {name: t.cuda().requires_grad_() for name, t in tensors.items()}
    seq_idx = torch.arange(length, device="cuda").expand(2, -1) // 37
    results = []
    for form in (ssd_sequential, lambda **kw: scan(**kw, backend=backend)):
        y, state = form(**p, seq_idx=seq_idx)
        loss = (y * y.detach().cos()).sum() + (state * state.detach().sin()).sum()
        results.append((y, state, *torch.autograd.grad(loss, tuple(p.values()))))
    for result, expected in zip(results[1], results[0], strict=True):
        # the kernels multiply in TF32
        bound = 5e-3 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(result, expected, rtol=0, atol=bound)
