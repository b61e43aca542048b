"""The coder in C is the reference to the bit, and says why where it cannot be."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from mar_snn.neurons import ATMNCoder, ATMNNode, native
from mar_snn.neurons.backends import available_backends
from mar_snn.neurons.reference import atmn_code

needs_a_compiler = pytest.mark.skipif(bool(native.obstacle()), reason="no C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of libraries that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._outcome.cache_clear()
    yield tmp_path / "mar_snn"
    native._outcome.cache_clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "two.c"
    path.write_text("int two(void) { return 2; }\n", encoding="ascii")
    return path


@needs_a_compiler
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 256), (2, 2, 257), (0, 4)])
@pytest.mark.parametrize(
    "how",
    [
        {"time_steps": 1},
        {"time_steps": 4},
        {"time_steps": 3, "tau": 1.7, "fire_ratio": 1.0, "readout": "sum"},
    ],
)
def test_codes_are_the_references_to_the_bit(dtype, shape, how):
    coder = ATMNCoder(shape[-1], backend="native", **how)
    coder.v_threshold = torch.rand(shape[-1]) + 0.2
    x = (2 * torch.randn(shape)).to(dtype)
    expected = atmn_code(
        x,
        coder.v_threshold,
        coder.weights,
        tau=coder.tau,
        fire_ratio=coder.fire_ratio,
        surrogate_function=None,
    )
    assert torch.equal(coder(x), expected)
    # from memory with gaps
    wide = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.equal(coder(wide), expected)


@needs_a_compiler
def test_values_at_the_threshold_and_beyond_numbers_do_what_the_reference_does():
    x = torch.tensor([0.5, -0.5, 0.25, 0.0, -0.0, float("inf"), float("nan"), 1e-45])
    coder = ATMNCoder(8, fire_ratio=1.0, v_threshold=0.5)
    expected = coder(x)
    coder.neuron.backend = "native"
    torch.testing.assert_close(coder(x), expected, rtol=0, atol=0, equal_nan=True)


@needs_a_compiler
def test_gradients_and_spikes_are_those_of_pytorchs_kernels():
    x = torch.randn(4, 6)
    found = []
    for backend in ("native", "torch"):
        coder, leaf = ATMNCoder(6, backend=backend), x.clone().requires_grad_()
        coder(leaf).square().sum().backward()
        node = ATMNNode(step_mode="m", backend=backend)
        found.append([leaf.grad, coder.neuron.a.grad, node(x)])
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other)


@needs_a_compiler
def test_a_library_is_compiled_once_and_kept(cache, source, monkeypatch):
    assert native.load(source).two() == 2
    (kept,) = cache.iterdir()
    native._outcome.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # nothing is compiled again
    assert native.load(source).two() == 2
    assert list(cache.iterdir()) == [kept]


@needs_a_compiler
def test_another_source_flag_or_machine_is_another_library(cache, source, monkeypatch):
    native.load(source)
    native.load(source, "-O1")
    native._outcome.cache_clear()
    monkeypatch.setattr(native, "_machine", lambda: ("another", "processor"))
    native.load(source)
    source.write_text("int two(void) { return 3; }\n", encoding="ascii")
    native._outcome.cache_clear()
    assert native.load(source).two() == 3
    assert len(list(cache.iterdir())) == 4


@needs_a_compiler
def test_what_the_compiler_refuses_is_shown_and_leaves_nothing(cache, tmp_path):
    wrong = Path(tmp_path) / "wrong.c"
    wrong.write_text("int two( { }\n", encoding="ascii")
    with pytest.raises(RuntimeError, match=r"(?s)cannot compile wrong.c:.*error"):
        native.load(wrong)
    assert list(cache.iterdir()) == []


def test_without_a_compiler_everything_that_asks_for_it_says_so(monkeypatch, source):
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    why = "there is no C compiler 'no-such-compiler': install gcc or clang, or set CC"
    assert available_backends("cpu")["native"] == why
    with pytest.raises(RuntimeError, match="backend='native' cannot run here: there"):
        ATMNCoder(3, backend="native")
    with pytest.raises(RuntimeError, match=r"two\.c cannot be compiled: there is no C"):
        native.load(source)


@needs_a_compiler
@pytest.mark.parametrize("damage", [lambda whole: whole[:5000], lambda _: b"garbage"])
def test_a_library_that_is_damaged_is_compiled_again(
    cache, source, damage, monkeypatch
):
    native.load(source)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # not over what is in use
    kept.write_bytes(damage(whole))
    native._outcome.cache_clear()
    assert native.load(source).two() == 2
    monkeypatch.setattr(subprocess, "run", None)  # but once
    native._outcome.cache_clear()
    assert native.load(source).two() == 2


@needs_a_compiler
def test_a_library_without_the_functions_is_refused(cache, source):
    with pytest.raises(RuntimeError, match=r"loaded .it has no function three"):
        native.load(source, symbols=("two", "three"))
    assert list(cache.iterdir()) == []


#: what stands in the place of a compiler -> what is said of it
IMPOSTORS = {
    "exit 1": "cannot compile code.c: it ended with 1",
    r"printf '\377\376' >&2; exit 3": "it ended with 3\n\ufffd\ufffd\n",
    "exit 0": "made of code.c no library that can be loaded",
    'for last; do :; done; echo garbage > "$last"': "no library that can be loaded",
    "exec sleep 60": "it has not ended after 0.2 s; set CC to another compiler",
}


@pytest.mark.parametrize(("script", "why"), IMPOSTORS.items())
def test_a_compiler_that_is_none_is_an_obstacle(cache, monkeypatch, script, why):
    compiler = cache.parent / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "_PATIENCE_S", 0.2 if "sleep" in script else 60.0)
    assert why in native.obstacle()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(subprocess, "run", None)  # it is not asked again
    with pytest.raises(RuntimeError, match=r"(?s)='native' cannot run here: .*'auto'"):
        ATMNNode(backend="native")


def test_what_is_no_program_is_an_obstacle(cache, monkeypatch):
    text = cache.parent / "notes.txt"
    text.write_text("gcc", encoding="ascii")
    for compiler in (str(text), str(cache.parent), "''"):
        monkeypatch.setenv("CC", compiler)
        assert native.obstacle().startswith("there is no C compiler '")
    text.chmod(0o755)
    monkeypatch.setenv("CC", str(text))
    assert "notes.txt cannot be run to compile code.c" in native.obstacle()
    monkeypatch.setenv("CC", "gcc '")
    assert native.obstacle() == """CC is no command, No closing quotation: "gcc '\""""


def test_a_cache_that_cannot_be_written_is_an_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_no_compiler", lambda: "")
    (tmp_path / "mar_snn").write_text("no folder", encoding="ascii")
    why = "the library of code.c cannot be kept .*: set XDG_CACHE_HOME to a folder"
    for place in (tmp_path, tmp_path / "mar_snn", Path("/proc/nowhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert re.match(why, native.obstacle())


def test_the_cache_is_that_of_the_home_folder_unless_a_whole_path_is_named(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "here", "~/.cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert native._cache() == tmp_path / ".cache" / "mar_snn"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(native, "_no_compiler", lambda: "")
    assert native.obstacle().endswith("to keep C kernels in: set XDG_CACHE_HOME")


def test_other_systems_have_no_c_kernels(monkeypatch):
    monkeypatch.setattr(native.os, "name", "nt")
    assert native.obstacle() == "C kernels are compiled on Linux and macOS only"


@needs_a_compiler
def test_the_compiler_of_the_environment_is_used(monkeypatch, cache, source):
    seen, run = [], subprocess.run

    def spy(command, **how):
        seen.append(command)
        return run(command, **how)

    monkeypatch.setattr(subprocess, "run", spy)
    monkeypatch.setenv("CC", "cc -DHELLO")
    native.load(source)
    assert seen[0][:2] == ["cc", "-DHELLO"]
