"""A compiled step of an optimized model is the step, in one graph.

In a fresh interpreter: the shape checker of the test run wraps every function in code
that Dynamo cannot trace, and users do not have it.
"""

import os
import subprocess
import sys

import torch


def check(weights):
    from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
    from mar_snn.sparse import optimize_for_decoding
    from mar_snn.spiking import calibrate, spikify

    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    config = LlambaConfig(
        vocab_size=48,
        d_model=24,
        n_layer=1,
        mlp_cfg={"intermediate_size": 40},
        ssm_cfg={"d_state": 5, "n_v_heads": 4, "n_qk_heads": 2},
        initializer_range=0.4,
    )
    model, ids = (
        LlambaForCausalLM(config).double().eval(),
        torch.randint(1, 48, (1, 12)),
    )
    calibrate(spikify(model), [{"input_ids": ids}])
    optimize_for_decoding(model, weights=weights, head=weights, break_even=1.0)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    step = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        ours, theirs = (model(ids[:, :6]).past_key_values for _ in range(2))
        for token in ids[:, 6:].unbind(1):
            found = step(token[:, None], past_key_values=ours).logits
            expected = model(token[:, None], past_key_values=theirs).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert "mar_snn.event_linear.default" in called
    assert "mar_snn.dense_linear.default" in called


def test_compiled_steps_are_the_steps():
    run = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    for weights in ("same", "int8"):
        check(weights)
