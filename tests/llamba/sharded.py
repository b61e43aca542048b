"""A Llamba that FSDP2 shards, for test_sharding.py.

    python sharded.py FILE

Processes, started by torchrun's environment variables, share four rows of tokens.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mar_snn.llamba import LlambaCache, LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import SpikingConfig, calibrate, coders, spikify


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(path: str) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    # two processes halve none of these widths evenly but the last
    config = LlambaConfig(
        vocab_size=51,
        pad_vocab_size_multiple=1,
        d_model=15,
        n_layer=2,
        mlp_cfg={"intermediate_size": 21},
        ssm_cfg={"d_state": 5, "n_v_heads": 3, "n_qk_heads": 1},
        initializer_range=0.2,
    )
    model = LlambaForCausalLM(config).double().eval()
    ids = torch.randint(51, (4, 37))
    spikify(model, SpikingConfig())
    calibrate(model, [{"input_ids": ids}])
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        # FSDP2 wants one dtype in a group, and thresholds are float32 in any model
        for _, coder in coders(model):
            fully_shard(coder, mesh=mesh)
        for layer in model.backbone.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    mine = ids[rank * 4 // processes : (rank + 1) * 4 // processes]
    logits = model(mine, use_cache=False).logits
    # FSDP takes the mean over processes
    (logits * logits.detach().cos()).sum().mul(processes).backward()
    gathered = [torch.empty_like(logits) for _ in range(processes)]
    dist.all_gather(gathered, logits.detach())
    gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
    cache = LlambaCache(2)
    with torch.no_grad():
        model(mine[:, :20], past_key_values=cache)
        step = model(mine[:, 20:21], past_key_values=cache).logits
    torch.testing.assert_close(step[:, 0], logits[:, 20])
    if rank == 0:
        torch.save({"logits": torch.cat(gathered), "gradients": gradients}, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
