"""torch.compile and FSDP2 with spiking hosts, in a process of their own.

The shape checker of the test run wraps every function in code that Dynamo cannot trace,
and users do not have it.

    python -m tests.hosts.test_processes FOLDER
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

ROOT = Path(__file__).parents[2]
NAMES = ("Mamba2", "Bamba", "Llama")


def gradients(model, batch):
    logits = model(**batch).logits
    logits.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return logits.detach(), {
        name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        for name, grad in found.items()
        if grad is not None
    }


def check_compiled(name):
    from tiny_hosts import make_spiking, tokens

    model = make_spiking(name)
    model.config.use_cache = False
    wanted = gradients(model, tokens())
    model.zero_grad()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    logits, found = gradients(compiled, tokens())
    torch.testing.assert_close(logits, wanted[0])
    torch.testing.assert_close([*found.values()], [*wanted[1].values()])


def check_sharded(name):
    from tiny_hosts import make_spiking, tokens

    wanted = gradients(make_spiking(name), tokens())
    model, mesh = make_spiking(name), init_device_mesh("cpu", (1,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    found = gradients(fully_shard(model, mesh=mesh), tokens())
    torch.testing.assert_close(found, wanted)


def main(folder: Path) -> None:
    sys.path.append(str(ROOT / "benchmarks"))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=0, world_size=1
    )
    for name in NAMES:
        for check in (check_compiled, check_sharded):
            check(name)
            sys.stdout.write(f"{check.__name__} {name}\n")
            sys.stdout.flush()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    command = [sys.executable, "-m", "tests.hosts.test_processes"]
    folder = str(tmp_path_factory.mktemp("processes"))
    return subprocess.run(
        [*command, folder], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", [check_compiled, check_sharded])
def test_it_gives_what_the_plain_model_gives(outcome, check, name):
    assert f"{check.__name__} {name}\n" in outcome.stdout, outcome.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
