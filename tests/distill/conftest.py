import copy
from functools import partial

import datasets
import pytest
import torch
from datasets import Dataset

from mar_snn.distill import SBDSConfig
from mar_snn.distill.data import apply_chat_template
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import calibrate, spikify
from tests.seed import SEED


@pytest.fixture
def teacher() -> LlambaForCausalLM:
    torch.manual_seed(SEED)
    config = LlambaConfig(
        vocab_size=40,
        d_model=16,
        n_layer=2,
        mlp_cfg={"intermediate_size": 24},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.3,
    )
    return LlambaForCausalLM(config).eval()


@pytest.fixture
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(SEED + 3)
    ids = torch.randint(1, 40, (16, 12), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()})


@pytest.fixture
def student(teacher, rows) -> LlambaForCausalLM:
    student = spikify(copy.deepcopy(teacher))
    calibrate(student, [{"input_ids": torch.tensor(rows["input_ids"])}])
    return student


@pytest.fixture
def checkpointing() -> str:
    """The argument's name up to transformers 5.22, or the one it has since."""
    new = "activation_checkpointing"
    return new if hasattr(SBDSConfig, new) else "gradient_checkpointing"


@pytest.fixture
def config(tmp_path):
    """Make an SBDSConfig for a short run on a CPU."""

    def make(**options) -> SBDSConfig:
        return SBDSConfig(
            **{
                "output_dir": str(tmp_path),
                "max_steps": 4,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "logging_steps": 1.0,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
                **options,
            }
        )

    return make


@pytest.fixture
def away_from_home(tmp_path, monkeypatch) -> None:
    """Data sets are cached in the test's own folder, and without progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def tokenizer(byte_tokenizer):
    return byte_tokenizer()


@pytest.fixture
def plain(tokenizer):
    """Messages as lines of role and content."""
    return partial(apply_chat_template, tokenizer=tokenizer, template="plain")
