"""torch.compile, DDP and FSDP2 with any neuron.

The cases run in fresh interpreters: Dynamo cannot trace the shape checker of the test
run, and a process group wants processes. A child notes which of its checks went wrong,
and the test of that check and neuron raises it here.

    python -m tests.neurons.test_conformance_processes compile FOLDER
    python -m tests.neurons.test_conformance_processes RANK FOLDER
"""

import builtins
import copy
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from mar_snn.neurons import ATMNNode
from tests.neurons.conformance import (
    CHANNELS,
    NODES,
    assert_same,
    everything,
    expect_shortcomings,
    some_input,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROCESSES = 2

Make = Callable[..., neuron.BaseNode]


# what the children run


def check_compile(make: Make) -> None:
    """One graph in either step mode, with the results and gradients of eager mode."""
    x_seq = some_input(3, 2, CHANNELS)
    for step_mode in ("s", "m"):
        torch._dynamo.reset()
        node = make(step_mode=step_mode)
        compiled = torch.compile(node, backend="aot_eager", fullgraph=True)
        expected = everything(node, x_seq)
        assert_same(
            everything(node, x_seq, call=partial(in_graphs, compiled)), expected
        )


def in_graphs(
    compiled: Callable[[Tensor], Tensor], node: neuron.BaseNode, x_seq: Tensor
) -> Tensor:
    if node.step_mode == "m":
        return compiled(x_seq)
    return torch.stack([compiled(x) for x in x_seq])


def check_step(wrap: Callable[[nn.Sequential], nn.Module], make: Make) -> None:
    """A step of two processes, each on half of the batch, is one step on all of it."""
    alone = small_net(make)
    shared = copy.deepcopy(alone)
    x_seq = some_input(3, 6, 4)
    step(alone, alone[1], x_seq)
    share = x_seq.chunk(PROCESSES, dim=1)[torch.distributed.get_rank()]
    step(wrap(shared), shared[1], share)
    for ours, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        assert theirs.grad.count_nonzero() > 0
        torch.testing.assert_close(whole(ours.grad), theirs.grad)
        torch.testing.assert_close(whole(ours), theirs)


def check_print(make: Make) -> None:
    """A sharded network can be printed, whatever is left of its parameters here."""
    net = small_net(make)
    kind = type(net[1]).__name__
    text = repr(in_fsdp(net))
    assert kind in text
    if isinstance(net[1], ATMNNode):
        assert "v_threshold=sharded" in text
        with pytest.raises(ValueError, match="set it before fully_shard"):
            net[1].v_threshold = 0.5


def small_net(make: Make) -> nn.Sequential:
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    return nn.Sequential(nn.Linear(4, CHANNELS), make(step_mode="m"))


def step(net: nn.Module, node: neuron.BaseNode, x_seq: Tensor) -> None:
    """One step of gradient descent on a mean over the batch."""
    weights = torch.linspace(-1.0, 1.0, CHANNELS)
    loss = (net(x_seq) * weights).mean() + node.v.square().mean()
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def whole(tensor: Tensor) -> Tensor:
    """What the processes hold together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def in_ddp(net: nn.Sequential) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


def in_fsdp(net: nn.Sequential) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(net[1], mesh=mesh)
    return fully_shard(net, mesh=mesh)


CHECKS: dict[str, Callable[[Make], None]] = {
    "ddp": partial(check_step, in_ddp),
    "fsdp": partial(check_step, in_fsdp),
    "print": check_print,
}


def run_checks(checks: dict[str, Callable[[Make], None]], file: Path) -> None:
    """Write {check: {node: error}}, after each one: the next may end the process."""
    outcomes: dict[str, dict[str, tuple[str, str] | None]] = {}
    for task, check in checks.items():
        outcomes[task] = {}
        for name, make in NODES.items():
            try:
                check(make)
            except Exception as error:  # noqa: BLE001  raised in the test run
                outcomes[task][name] = type(error).__name__, traceback.format_exc()
            else:
                outcomes[task][name] = None
            file.write_text(json.dumps(outcomes))


def main(task: str, folder: Path) -> None:
    file = folder / f"{task}.json"
    if task == "compile":
        run_checks({"compile": check_compile}, file)
        return
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=int(task),
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    run_checks(CHECKS, file)
    # a process that leaves first would abort the threads of the others
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# what the test run makes of it


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{task: {check: {node: error}}} of all children, which run side by side."""
    folder = tmp_path_factory.mktemp("children")
    tasks = ["compile", *map(str, range(PROCESSES))]
    command = [sys.executable, "-B", "-m", "tests.neurons.test_conformance_processes"]
    children = [
        subprocess.Popen([*command, task, str(folder)], cwd=ROOT) for task in tasks
    ]
    try:
        for child in children:
            child.wait(timeout=240)
    finally:
        for child in children:
            child.kill()
    return {task: json.loads((folder / f"{task}.json").read_text()) for task in tasks}


@pytest.fixture(params=NODES)
def name(request):
    expect_shortcomings(request, request.param)
    return request.param


def assert_went_well(outcomes, task, check, name):
    """Raise what the child met, if anything."""
    checked = outcomes[task].get(check, {})
    assert name in checked, "the process ended before it came to this neuron"
    if checked[name] is not None:
        kind, story = checked[name]
        raise getattr(builtins, kind, RuntimeError)(story)


def test_it_compiles_as_one_graph(outcomes, name):
    assert_went_well(outcomes, "compile", "compile", name)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_ddp_takes_the_step_of_one_process(outcomes, name, rank):
    assert_went_well(outcomes, str(rank), "ddp", name)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_fsdp_takes_the_step_of_one_process(outcomes, name, rank):
    assert_went_well(outcomes, str(rank), "fsdp", name)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_a_sharded_network_can_be_printed(outcomes, name, rank):
    assert_went_well(outcomes, str(rank), "print", name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
