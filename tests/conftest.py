"""What the tests of the examples share."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
