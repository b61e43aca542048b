"""torch.compile gives the eager results in one graph.

The cases run in a fresh interpreter: the shape checker of the test run wraps every
function in code that Dynamo cannot trace, and users do not have it.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch


def spikes_membrane_and_gradients(run, node, x):
    x = x.clone().requires_grad_()
    node.reset()
    spikes = run(x)
    of_x, of_a = torch.autograd.grad(spikes.sum() + node.v.sum(), (x, node.a))
    return spikes, node.v, of_x, of_a


def check_node(backend, step_mode, num_channels, kernels):
    from mar_snn.neurons import ATMNNode

    torch.manual_seed(0)
    node = ATMNNode(
        1.7, num_channels=num_channels, step_mode=step_mode, backend=kernels
    )
    x = torch.randn(3, 2, 5) if step_mode == "m" else torch.randn(2, 5)
    expected = spikes_membrane_and_gradients(node, node, x)
    compiled = torch.compile(node, backend=backend, fullgraph=True)
    ours = spikes_membrane_and_gradients(compiled, node, x)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours, expected)


def check_coder(backend, gradient, dtype, kernels):
    from mar_snn.neurons import ATMNCoder

    torch.manual_seed(0)
    coder = ATMNCoder(5, gradient=gradient, backend=kernels)
    compiled = torch.compile(coder, backend=backend, fullgraph=True)
    x = torch.randn(2, 3, 5).to(dtype).requires_grad_()
    results = []
    for run in (coder, compiled):
        decoded = run(x)
        gradients = torch.autograd.grad(decoded.sum(), (x, coder.neuron.a))
        results.append((decoded, *gradients))
    assert results[0][1].abs().sum() > 0
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


def main():
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
