import pytest
import torch

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from tests.seed import SEED


@pytest.fixture
def config() -> LlambaConfig:
    """Two layers with odd widths, and two heads for each group."""
    return LlambaConfig(
        vocab_size=45,  # becomes 48
        d_model=24,
        n_layer=2,
        mlp_cfg={"intermediate_size": 40},
        ssm_cfg={"d_state": 5, "n_v_heads": 4, "n_qk_heads": 2},
        eos_token_id=0,
        pad_token_id=0,
    )


@pytest.fixture
def model(config: LlambaConfig) -> LlambaForCausalLM:
    """A model whose every parameter matters: none is at its start value."""
    model = LlambaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 48, (2, 71), generator=torch.Generator().manual_seed(SEED))
