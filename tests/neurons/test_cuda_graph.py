"""Both operations inside a CUDA graph, which no kernel may wait in."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import ops, reference


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cupy", "torch"])
def test_a_cuda_graph_on_its_own_stream_replays_forward_and_backward(backend):
    pytest.importorskip(backend)
    leaves = [1.5 * torch.randn(4, 64, 96), torch.randn(64, 96), torch.rand(96) + 0.5]
    leaves = [leaf.cuda().requires_grad_() for leaf in leaves]
    how = {"tau": 1.7, "fire_ratio": 0.8, "surrogate_function": surrogate.ATan()}

    def run(operations, **by):
        spikes, v, _ = operations.atmn_multi_step(*leaves, **how, **by)
        code = operations.atmn_code(v, leaves[2], (1.0, 0.5), **how, **by)
        loss = spikes.sum() + v.square().sum() + code.square().sum()
        return [spikes, v, code, *torch.autograd.grad(loss, leaves)]

    # what is compiled and kept is so before a graph is recorded
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(ops, backend=backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        ours = run(ops, backend=backend)
    for _ in range(2):
        with torch.no_grad():
            leaves[0].copy_(1.5 * torch.randn(4, 64, 96))
        graph.replay()
        once = [result.clone() for result in ours]
        graph.replay()
        # the sums over rows, too, have one order
        assert all(map(torch.equal, ours, once))
        expected = run(reference)
        assert all(map(torch.equal, ours[:3], expected[:3]))
        torch.testing.assert_close(ours[3:], expected[3:], rtol=2e-5, atol=2e-4)
