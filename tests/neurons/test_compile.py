"""torch.compile gives the eager results in one graph.

The cases run in a fresh interpreter: the shape checker of the test run wraps every
function in code that Dynamo cannot trace, and users do not have it.
"""

import importlib.util
import itertools
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import surrogate


def spikes_membrane_and_gradients(run, node, x):
    x = x.clone().requires_grad_()
    node.reset()
    spikes = run(x)
    of_x, of_a = torch.autograd.grad(spikes.sum() + node.v.sum(), (x, node.a))
    return spikes, node.v, of_x, of_a


def check_node(backend, step_mode, num_channels, kernels):
    from mar_snn.neurons import ATMNNode

    node = ATMNNode(
        1.7, num_channels=num_channels, step_mode=step_mode, backend=kernels
    )
    compiled = torch.compile(node, backend=backend, fullgraph=True)
    # with the second size the batch becomes a symbol
    for batch in (2, 3):
        shape = (3, batch, 5, 2) if step_mode == "m" else (batch, 5, 2)
        # channels last: the strides of the result must be those that were foretold
        x = torch.randn(shape).mT.contiguous().mT
        expected = spikes_membrane_and_gradients(node, node, x)
        ours = spikes_membrane_and_gradients(compiled, node, x)
        assert torch.equal(ours[0], expected[0])
        torch.testing.assert_close(ours, expected)


def check_coder(backend, gradient, dtype, kernels):
    from mar_snn.neurons import ATMNCoder

    coder = ATMNCoder(5, gradient=gradient, backend=kernels)
    compiled = torch.compile(coder, backend=backend, fullgraph=True)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 5).to(dtype).requires_grad_()
        results = []
        for run in (coder, compiled):
            decoded = run(x)
            gradients = torch.autograd.grad(decoded.sum(), (x, coder.neuron.a))
            results.append((decoded, *gradients))
        assert results[0][1].abs().sum() > 0
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


def check_what_is_said():
    """While a graph is traced, too: once, or as an error where a kernel was named."""
    from mar_snn.neurons import ATMNNode, backends

    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    backends.logger.addHandler(handler)
    x = torch.ones(2)
    for backend in ("auto", "auto", "triton"):
        node = ATMNNode(surrogate_function=surrogate.Rect(), backend=backend)
        compiled = torch.compile(node, backend="eager", fullgraph=True)
        if backend == "auto":
            assert compiled(x).tolist() == [1.0, 1.0]
        else:
            with pytest.raises(RuntimeError, match="no kernel for the surrogate Rect"):
                compiled(x)
    assert ["no kernel" in record.getMessage() for record in heard] == [True]


def operations_in_the_graph():
    """What a compiler finds in a node."""
    from mar_snn.neurons import ATMNNode

    found = []

    def look(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(ATMNNode(), backend=look, fullgraph=True)(torch.ones(2))
    return found


def check_the_environment():
    """On a CPU "auto" shows a compiler the equations, a name an operation."""
    assert not any("mar_snn" in name for name in operations_in_the_graph())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAR_SNN_BACKEND", "torch")
        assert any("mar_snn" in name for name in operations_in_the_graph())


def main():
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    # "auto" leaves the equations to the compiler on a CPU, "torch" is our operation
    cases = itertools.product(("eager", "aot_eager"), ("auto", "torch"))
    for backend, kernels in cases:
        for step_mode in ("s", "m"):
            for num_channels in (None, 5):
                torch._dynamo.reset()
                check_node(backend, step_mode, num_channels, kernels)
        for gradient in ("straight_through", "surrogate"):
            for dtype in (torch.float32, torch.bfloat16):
                torch._dynamo.reset()
                check_coder(backend, gradient, dtype, kernels)
    if shutil.which("g++"):
        torch._dynamo.reset()
        check_node("inductor", "s", 5, "auto")
        check_node("inductor", "m", 5, "torch")
        check_coder("inductor", "surrogate", torch.bfloat16, "auto")
    if importlib.util.find_spec("triton"):
        check_what_is_said()
    check_the_environment()


@pytest.mark.slow
def test_nodes_and_coders_compile_as_one_graph():
    run = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    main()
