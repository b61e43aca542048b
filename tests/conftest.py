"""What the tests of the examples share."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import calibrate, spikify

EXAMPLES = Path(__file__).parent.parent / "examples"


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
    torch.manual_seed(0)
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
