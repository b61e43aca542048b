"""torch.compile gives the eager results, in graphs that serve every token.

The cases run in a fresh interpreter: the shape checker of the test run wraps every
function in code that Dynamo cannot trace, and users do not have it.
"""

import os
import shutil
import subprocess
import sys

import pytest
import torch


def make(**more):
    from mar_snn.llamba import LlambaConfig, LlambaForCausalLM

    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    config = LlambaConfig(
        vocab_size=48,
        d_model=24,
        n_layer=1,
        mlp_cfg={"intermediate_size": 40},
        ssm_cfg={"d_state": 5, "n_v_heads": 4, "n_qk_heads": 2},
        initializer_range=0.4,  # logits of several units, states that matter
        **more,
    )
    return LlambaForCausalLM(config).double().eval(), torch.randint(1, 48, (2, 71))


def check_steps(backend, pieces, **more):
    """Pieces of a text behind a prompt; graphs are counted after each."""
    from torch._dynamo.utils import counters

    from mar_snn.llamba import LlambaCache

    torch._dynamo.reset()
    counters.clear()
    model, ids = make(**more)
    step = torch.compile(model, backend=backend, fullgraph=True)
    cache, graphs = LlambaCache(1), []
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        model(ids[:, : pieces[0][0]], past_key_values=cache)
        for start, end in pieces:
            logits = step(ids[:, start:end], past_key_values=cache).logits
            expected = full[:, start:end]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
            graphs.append(counters["stats"]["unique_graphs"])
    return graphs


def check_padded_steps():
    """Of which some tokens are padding: the same graphs, whatever the masks hold."""
    from torch._dynamo.utils import counters

    from mar_snn.llamba import LlambaCache

    torch._dynamo.reset()
    counters.clear()
    model, ids = make()
    step = torch.compile(model, backend="aot_eager", fullgraph=True)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 1], [1] * 8])
    compiled, eager, graphs = LlambaCache(1), LlambaCache(1), []
    with torch.no_grad():
        for cache in (compiled, eager):
            model(ids[:, :2], mask[:, :2], cache=cache)
        for t in range(2, 8):
            inputs = ids[:, t : t + 1], mask[:, : t + 1].contiguous()
            logits = step(*inputs, cache=compiled).logits
            expected = model(*inputs, cache=eager).logits
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1] + [2] * 5, graphs


def check_gradients():
    """Of a training step in one graph."""
    torch._dynamo.reset()
    model, ids = make()
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        logits = run(ids, use_cache=False).logits
        loss = (logits * logits.detach().cos()).mean()
        results.append(torch.autograd.grad(loss, tuple(model.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-9)


def check_no_kernel_breaks_a_graph():
    """Even where fla could run, it is not in a graph that no one asked it into."""
    from mar_snn.llamba import scan_backends
    from mar_snn.llamba.scan import LlambaScan

    torch._dynamo.reset()
    scan_backends._found.cache_clear()
    scan_backends._obstacle = lambda *_: ""
    x, a_log = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 2)
    tensors = [t.double() for t in (x, x, x, a_log, torch.ones(2))]
    assert scan_backends.choose_scan_backend("auto", "cpu", x.dtype) == "fla"
    y, _ = torch.compile(LlambaScan(), backend="eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(y, LlambaScan("torch")(*tensors)[0])


def main():
    from mar_snn.spiking import SpikingConfig

    tokens = [(t, t + 1) for t in range(20, 30)]
    graphs = check_steps("aot_eager", tokens, spiking=SpikingConfig())
    # how many tokens were read is a constant of the first graph, an input of the second
    assert graphs == [1] + [2] * 9, graphs
    check_padded_steps()
    check_gradients()
    if shutil.which("g++"):
        check_steps("inductor", [(20, 21), (21, 22), (22, 37)])
    check_no_kernel_breaks_a_graph()  # last: it changes what can run


@pytest.mark.slow
def test_steps_and_training_compile_as_one_graph():
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


if __name__ == "__main__":
    main()
