"""Every test starts from the same seed, and from memory that shows when it is read."""

import os
import random
from typing import Any

# no test needs a hub or a screen; set before the libraries read it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from torch.utils._device import _device_constructors

from tests.seed import SEED

# cached at its first call: that must see torch.empty itself, not the poisoned one
_device_constructors()

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["*.md"]
).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  what libraries draw from
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN: whoever reads it before writing shows in the result."""

    def poison(make: Any) -> Any:
        def poisoned(*args: Any, **kwargs: Any) -> Any:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() and not tensor.is_meta:
                tensor.detach().fill_(float("nan"))
            return tensor

        return poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
