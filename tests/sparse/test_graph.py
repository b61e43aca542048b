"""A recorded step is the step; what cannot be recorded is refused."""

import pytest
import torch

from mar_snn.llamba import LlambaCache
from mar_snn.sparse import GraphedStep, optimize_for_decoding
from tests.bounds import assert_as_exact


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_replayed_steps_are_the_models_steps(model, weights):
    model, ids = model.cuda(), torch.randint(1, 64, (1, 12), device="cuda")
    optimize_for_decoding(model, weights=weights, head=weights, break_even=1.0)
    replayed, run = [], []
    with torch.no_grad():
        ours, theirs = (model(ids[:, :6]).past_key_values for _ in range(2))
        step = GraphedStep(model, ours)
        for token in ids[:, 6:].unbind(1):
            replayed.append(step(token[:, None]).cpu())
            run.append(model(token[:, None], past_key_values=theirs).logits.cpu())
        exact = model.cpu().double()(ids.cpu()).logits[:, 6:]
    assert_as_exact([torch.cat(replayed, 1)], [torch.cat(run, 1)], [exact])
    assert ours.get_seq_length() == theirs.get_seq_length() == 12


def test_a_model_on_a_cpu_is_refused(model):
    with pytest.raises(ValueError, match="needs a model on a CUDA device, got cpu"):
        GraphedStep(model, LlambaCache(2))


def test_a_cache_that_has_read_nothing_is_refused(model, monkeypatch):
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="run the prompt first"):
        GraphedStep(model, LlambaCache(2))
