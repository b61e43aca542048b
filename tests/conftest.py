"""What tests of several folders share."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import calibrate, spikify
from tests.seed import SEED

EXAMPLES = Path(__file__).parent.parent / "examples"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def float64() -> Iterator[None]:
    """Tensors and modules of this test are float64, unless they say otherwise.

    Sums in another order then differ by 1e-15, not by what would take a bound; and no
    membrane comes so near to its threshold that a rounding decides over a spike.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def load_example() -> Callable[[str], ModuleType]:
    """Import an example by its name, without running it."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        # HfArgumentParser looks the module of a dataclass up by its name
        sys.modules[name] = module
        if str(EXAMPLES) not in sys.path:  # as when it runs: modules beside it
            sys.path.append(str(EXAMPLES))
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """Import a benchmark, or a part of one, by its name, without running it."""

    def load(name: str) -> ModuleType:
        if str(BENCHMARKS) not in sys.path:  # as when it runs: modules beside it
            sys.path.append(str(BENCHMARKS))
        path = BENCHMARKS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def load_results() -> Callable[[str], Any]:
    """Read what a benchmark wrote and somebody committed."""

    def load(name: str) -> Any:
        path = BENCHMARKS / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    return load


@pytest.fixture
def run_processes() -> Callable[[Path, Path, int], Any]:
    """Run a script as so many processes of a group; what the first saved to a path."""

    def run(script: Path, path: Path, processes: int) -> Any:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        running = [
            subprocess.Popen(
                [sys.executable, str(script), str(path)],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        for process in running:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
        return torch.load(path)

    return run


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Make a tokenizer with one token for each byte; the first one ends a text."""

    def make(extra: list[str] | None = None) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=alphabet[0],
            clean_up_tokenization_spaces=False,
        )
        fast.add_tokens(extra or [])
        return fast

    return make


@pytest.fixture(scope="session")
def llambas(tmp_path_factory, byte_tokenizer) -> dict[str, Path]:
    """Folders of a random Llamba whose tokens are bytes, "dense" and "spiking"."""
    torch.manual_seed(SEED)
    config = LlambaConfig(
        vocab_size=256,
        d_model=16,
        n_layer=2,
        mlp_cfg={"intermediate_size": 24},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlambaForCausalLM(config)
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("dense", "spiking")}
    for kind, folder in folders.items():
        if kind == "spiking":
            spikify(model)
            calibrate(model, [{"input_ids": torch.randint(256, (8, 40))}])
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def triton_device() -> Iterator[torch.device]:
    """The CUDA device or else the CPU, on which Triton then interprets its kernels.

    Triton reads the environment where a kernel is decorated, so the module of kernels
    is imported afresh, here and by whoever comes after. Tests outside and their child
    processes see nothing of it.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setenv("TRITON_INTERPRET", "1")
        _mend_the_interpreter(patch)
        _forget_kernels()
        yield torch.device("cpu")
    _forget_kernels()


def _forget_kernels() -> None:
    # not above: there the shape checker would come too late to see the modules
    from mar_snn.neurons import backends

    for kernels in (
        "mar_snn.neurons.triton_kernels",
        "mar_snn.distill.triton_divergences",
        "mar_snn.sparse.triton_kernels",
    ):
        sys.modules.pop(kernels, None)
    backends.kernels_for.cache_clear()


def _mend_the_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Where the interpreter of Triton 3.6 does what no device does."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cut_off, patch_tensor = builder.cast_impl, interpreter._patch_lang_tensor

    def index_by_number(tensor: Any, scope: Any) -> None:
        # a number is an array of one, which NumPy from 2.4 on refuses to count by
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def round_to_bfloat16(self: Any, src: Any, dst_type: Any) -> Any:
        # float32 is cut off, where a device rounds to the nearest
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cut_off(self, src, dst_type)
        rounded = torch.from_numpy(src.data).to(torch.bfloat16).view(torch.uint16)
        return interpreter.TensorHandle(rounded.numpy(), tl.bfloat16)

    # Triton's own are for devices where Triton was imported before all this
    def add_up(tensor: Any, axis: int) -> Any:
        return tl.reduce(tensor, axis, tl.standard._sum_combine)

    def largest(tensor: Any, axis: int) -> Any:
        return tl.reduce(tensor, axis, tl.standard._elementwise_max)

    patch.setattr(interpreter, "_patch_lang_tensor", index_by_number)
    patch.setattr(builder, "cast_impl", round_to_bfloat16)
    patch.setattr(tl, "sum", add_up)
    patch.setattr(tl, "max", largest)
