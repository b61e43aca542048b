"""What works on a spiking model of each host, found out by doing it.

    python benchmarks/host_table.py

Writes benchmarks/results/hosts.json, and the table in docs/hosts.md. The hosts are the
random ones of tiny_hosts.py, on a CPU, with calibrated coders at every site.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mamba_ssm_stand_in
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from rich.progress import track
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens
from torch import Tensor, nn

from mar_snn import SpikeOpCounter, load, provenance
from mar_snn.console import show_what_can_be_shown
from mar_snn.hosts import skipped
from mar_snn.hosts.slots import owners
from mar_snn.spiking import coders, projections

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "hosts.json"
PAGE = ROOT / "docs" / "hosts.md"
#: The table stands between these lines of the page.
BEGIN, END = "<!-- table of hosts -->\n", "<!-- end of table -->"

#: peft refuses to adapt out_proj in models of these types, spiking or not.
NO_LORA_ON_OUT_PROJ = ("mamba", "falcon_mamba", "mamba2", "falcon_h1", "nemotron_h")


# ---- what is tried; each gives True, or a word for the table


def generates(name: str) -> bool:
    """Whether greedy decoding from the cache gives the tokens it gives without."""
    model, prompt = make_spiking(name), tokens()["input_ids"]
    if not name.startswith("mamba_ssm"):
        how: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
        cached, whole = (
            model.generate(prompt, max_new_tokens=8, use_cache=use_cache, **how)
            for use_cache in (True, False)
        )
        return torch.equal(cached, whole)
    memory = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    cached, unread = prompt, prompt
    whole = prompt
    with torch.no_grad():
        for _ in range(8):
            logits = model(unread, inference_params=memory).logits
            memory.seqlen_offset += unread.shape[1]
            unread = logits[:, -1:].argmax(-1)
            cached = torch.cat([cached, unread], 1)
            new = model(whole).logits[:, -1:].argmax(-1)
            whole = torch.cat([whole, new], 1)
    return torch.equal(cached, whole)


def trains(name: str) -> bool:
    """Whether a step of AdamW moves each fed projection and each threshold."""
    model, batch = make_spiking(name).train(), tokens()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    next_token_loss(model, batch).backward()
    watched = [linear.weight for _, linear, _ in projections(model)]
    watched += [coder.neuron.a for _, coder in coders(model)]
    before = [parameter.detach().clone() for parameter in watched]
    optimiser.step()
    return bool(
        next_token_loss(model, batch).isfinite()
        and all(p.grad.isfinite().all() and p.grad.any() for p in watched)
        and all(not torch.equal(*pair) for pair in zip(watched, before, strict=True))
    )


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean cross-entropy of the next token."""
    logits = model(**batch).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def saves_and_loads(name: str) -> bool:
    """Whether what load() reads gives the same logits, bit for bit."""
    model, batch = make_spiking(name), tokens()
    with tempfile.TemporaryDirectory() as folder, mamba_ssm_stand_in.installed():
        model.save_pretrained(folder)
        loaded = load(folder)
    with torch.no_grad():
        same = torch.equal(loaded(**batch).logits, model(**batch).logits)
    thresholds = (
        torch.equal(one.v_threshold, two.v_threshold)
        and two.v_threshold.dtype == torch.float32
        for (_, one), (_, two) in zip(coders(model), coders(loaded), strict=True)
    )
    return type(loaded) is type(model) and same and all(thresholds)


def adapts(name: str) -> bool | str:
    """Whether merging LoRA into the projections leaves the logits where they were."""
    model, batch = make_spiking(name), tokens()
    names = {name.rpartition(".")[2] for name, _, _ in projections(model)}
    model_type = getattr(model.config, "model_type", "")
    left_out = {"out_proj"} if model_type in NO_LORA_ON_OUT_PROJ else set()
    if name == "Zamba2":  # the weights of its feed-forwards are tied to each other
        left_out = names - {"in_proj", "out_proj"}
    names -= left_out
    if not hasattr(model.config, "to_dict"):  # peft asks for it
        model.config = vars(model.config)
    torch.manual_seed(2)
    settings = LoraConfig(r=2, target_modules=sorted(names), init_lora_weights=False)
    with torch.no_grad():
        adapted = get_peft_model(model, settings).eval()
        before = adapted(**batch).logits
        after = adapted.merge_and_unload()(**batch).logits
        plain = make_spiking(name)(**batch).logits
    merged = bool((before - after).abs().max() <= 1e-5 * before.abs().max())
    changed = bool((before - plain).abs().max() > 1e-2 * plain.abs().max())
    if not (merged and changed):
        return False
    return f"not {', '.join(sorted(left_out))}" if left_out else True


def counts(name: str) -> bool | str:
    """Whether SpikeOpCounter has a rule for all that runs, and which things not."""
    model, batch = make_spiking(name), tokens()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(**batch)
    run = counter.run()
    if not run.uncounted:
        counter.report().assert_complete()
        return set(run.firing) == {name for name, _ in coders(model)}
    return f"not {', '.join(sorted(run.uncounted))}"


def calibrates(name: str) -> bool | str:
    """How far the logits of unseen tokens are from the dense ones, before and after."""
    dense, spiking = make_dense(name), make_spiking(name)
    unseen = tokens(rows=8, length=32, seed=3)
    with torch.no_grad():
        wanted, fitted = dense(**unseen).logits, spiking(**unseen).logits
        for _, coder in coders(spiking):
            coder.v_threshold = 1.0
        started = spiking(**unseen).logits
    before, after = (
        ((logits - wanted).norm() / wanted.norm()).item()
        for logits in (started, fitted)
    )
    return f"{before:.2f} → {after:.2f}" if after < before else False


CHECKS: dict[str, Callable[[str], bool | str]] = {
    "distance to dense": calibrates,
    "generate": generates,
    "train": trains,
    "save, load": saves_and_loads,
    "LoRA": adapts,
    "counter": counts,
}


# ---- the table


def row(name: str) -> dict[str, Any]:
    """All that is found out about one host."""
    model = make_spiking(name)
    experts = skipped(model)
    notes = [HOSTS[name].note] if HOSTS[name].note else []
    notes += [f"{len(experts)} block(s) of experts stay dense"] if experts else []
    return {
        "host": name,
        "sites": sorted({site for o in owners(model) for site in o.plan.sites}),
        "coders": sum(1 for _ in coders(model)),
        "checks": {title: check(name) for title, check in CHECKS.items()},
        "notes": notes,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    titles = ["host", "sites", *CHECKS, "notes"]
    lines = [titles, ["---"] * len(titles)]
    for found in rows:
        cells = [_word(found["checks"][title]) for title in CHECKS]
        sites = ", ".join(found["sites"])
        lines.append([found["host"], sites, *cells, "; ".join(found["notes"])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _word(answer: bool | str) -> str:
    return answer if isinstance(answer, str) else "yes" if answer else "no"


def main() -> None:
    """Try everything, and write down what came of it."""
    torch.set_num_threads(1)
    rows = [row(name) for name in track(HOSTS, "hosts")]
    results = {
        "seed": 0,
        "machine": provenance.machine(),
        "versions": provenance.versions("peft"),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.partition(END)[2]
    page = f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}"
    PAGE.write_text(page, encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
