"""What counts as right in benchmarks/energy_counters.py, tool by tool, and who is.

A tool claims figures; each has to be right by our convention or by the tool's own. What
it does not claim is outside, whatever it reports.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mar_snn.energy import OpCounts
from tests.energy.hand_derived import Case

#: name of a figure -> what is right -> the convention that it follows, "" for ours;
#: or why the case is outside of what the tool counts
Claims = dict[str, dict[int, str]] | str


# ---- what is right by another convention, by hand

#: MACs with padded zeros: positions · taps · inputs · outputs of the groups
PADDED = {
    "C09-corner": 9 * 9 * 2,
    "C10-full-image": 9 * 9 * 2,
    "C11-analogue-border": 9 * 9 * 2,
    "C14-bias": 9 * 9 * 2,
    "dilated-groups": 7 * 3 * 4,
    "cube": 27 * 8 * 3,
    "transposed": 9 * 9 * 2,  # its positions are those of the input
    "causal": 4 * 3 * 2,
}
#: effective MACs: products of two numbers that are not zero, where they are fewer
EFFECTIVE = {"C08-zero-weights": 0, "J5-zeros-and-ones-by-chance": 4 * 3}
#: 3 · 3 pairs of 2 + 2 products, whatever the mask
ALL_PAIRS = 36
#: two integer spikes of 3 outputs
GRADED = 6
INTEGER = "C06-integer-spikes"

#: products and sums that no module with a rule makes
FUNCTIONAL = {"C15-functional", "scaled-sum", "spikes-on-the-right", "batched-product"}
FUNCTIONAL |= {"einsum", "C16-q-k-v", "N2-used-by-its-weight", "S6-upsampling"}
#: thresholds and sums over T are folded: the spikes are in no tensor
FOLDED = {"C05-scaled-and-folded", "coder-geometric", "coder-planes-cancel"}
UNDECLARED = "the layer's input holds no unit spikes, and none can be declared"


def accumulations(case: Case) -> int:
    """Accumulations of either sign and coincidences."""
    fields = ("ac_add", "ac_sub", "ac_coincidence")
    return sum(case.expected.get(field, 0) for field in fields)


def macs(case: Case, field: str = "mac") -> dict[int, str]:
    """Multiply-accumulates, padding included or not."""
    found = case.expected.get(field, 0)
    padded = PADDED.get(case.name, found) if found else found
    return {padded: "padding included"} | {found: ""}


def outside(case: Case) -> str:
    """Why the case is nobody's but ours, or ""."""
    if case.settings:
        return "a setting of mar_snn; the call itself is judged elsewhere"
    if case.name == "scan-recurrent":
        return "no rule for a scan"
    return "" if case.expected.get("dense_mac") else "no product of tensors"


def is_sdpa(case: Case) -> bool:
    """Whether torch's scaled_dot_product_attention is called."""
    return case.name.startswith("attention") and case.name != "attention-written-out"


# ---- what each tool claims


def mar_snn(case: Case) -> Claims:
    """Every field."""
    fields = OpCounts(**case.expected).as_dict()
    return {field: {number: ""} for field, number in fields.items()}


def mar_snn_inferred(case: Case) -> Claims:
    """Every field, where the spikes are in the tensors."""
    return UNDECLARED if case.name in FOLDED else mar_snn(case)


def spikingjelly(case: Case) -> Claims:
    """SynOps and MACs of the operations that its documentation lists."""
    if is_sdpa(case):
        return "documents mm, addmm, bmm, baddbmm and convolution"
    if case.name in FOLDED:
        return UNDECLARED
    graded = {GRADED: "graded"} if case.name == INTEGER else {}
    return outside(case) or {
        "synops": graded | {accumulations(case): ""},
        "mac": macs(case),
    }


def syops(case: Case) -> Claims:
    """ACs and MACs of the modules that its documentation lists."""
    if case.name in FUNCTIONAL or case.name.startswith("attention"):
        return "documents that it leaves out functional calls"
    if case.name in FOLDED | {INTEGER, "ternary-if"}:
        return "its SpikingJelly has no such neuron"
    if case.name in {"softmax", "layer-norm", "causal"}:
        return "not in its list of modules"
    ac, expected = accumulations(case), case.expected
    accepted = {ac + expected.get("bias_add", 0): "bias included"}
    if "lif" in case.name or case.name == "if-soft-reset":
        # as many updates as comparisons
        accepted = {ac + expected["cmp"]: "1 AC per neuron and step"}
    elif reason := outside(case):
        return reason
    return {"ac": accepted | {ac: ""}, "mac": macs(case)}


def neurobench(case: Case) -> Claims:
    """ACs, effective MACs and dense operations of the layers that it hooks."""
    hooked = not (
        case.name in FUNCTIONAL or case.name.startswith(("attention", "transposed"))
    )
    if not hooked:
        return "hooks Linear, Conv1d to Conv3d and recurrent cells"
    if case.name in FOLDED:
        return UNDECLARED
    mac, ac = case.expected.get("mac", 0), accumulations(case)
    claims = {
        "ac": {ac: ""},
        "mac": {EFFECTIVE.get(case.name, mac): "effective MACs", mac: ""},
        "dense_mac": {case.expected.get("dense_mac", 0): ""},
    }
    if case.name == INTEGER:
        note = "integer spikes are effective MACs"
        claims |= {"ac": {0: note, ac: ""}, "mac": {GRADED: note, mac: ""}}
    return outside(case) or claims


def flop_counter(case: Case) -> Claims:
    """Dense MACs: half its FLOPs."""
    pairs = {ALL_PAIRS: "all pairs"} if is_sdpa(case) else {}
    return outside(case) or {"dense_mac": pairs | macs(case, "dense_mac")}


# ---- judging


def judge(figures: Mapping[str, Any], claims: Claims) -> tuple[str, str]:
    """Verdict and why: conventions followed, what is wrong, or what cannot be done."""
    if isinstance(claims, str):
        return "cannot", claims
    if "error" in figures:
        return "cannot", figures["error"]
    wrong, notes = [], []
    for name, accepted in claims.items():
        figure = figures.get(name, 0)
        if figure not in accepted:
            ours = next(number for number, note in accepted.items() if not note)
            wrong.append(f"{name} {figure} ({ours})")
        elif accepted[figure]:
            notes.append(accepted[figure])
    if wrong:
        return "wrong", ", ".join(wrong)
    return "right", ", ".join(dict.fromkeys(notes))


def group_of(case: Case) -> str:
    """The row of the short table that a case belongs to."""
    layer = case.layer()
    if case.name.startswith("attention") or case.name == "C16-q-k-v":
        return "attention"
    if "Conv" in type(layer).__name__:
        return "convolutions"
    if case.name in FOLDED or hasattr(next(layer.children(), None), "v_reset"):
        return "neurons and coders, T steps"
    if not case.expected.get("dense_mac") or case.name == "scan-recurrent":
        return "softmax, norm, upsampling, scan"
    if case.name in FUNCTIONAL:
        return "products without a module"
    if case.dtype != torch.float32:
        return "16-bit layers"
    if not any(case.spiking):
        return "linear layers, analogue"
    negative = any(bool((x < 0).any()) for x in case.tensors())
    return f"linear layers, {'ternary' if negative else 'binary'}"
