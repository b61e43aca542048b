"""Features at the norms of a model: what enters them, what leaves them, or both.

transformers' own `hidden_states` end behind the last norm and skip the norm in the
middle of a block, so they cannot give pre-norm features; hooks on the norms can.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FEATURE_POINTS", "norms", "record_features"]

#: Where features are taken; see `record_features`.
FEATURE_POINTS = ("pre_norm", "post_norm", "both")


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a model by name: modules whose class says RMSNorm or LayerNorm.

    Raises:
        ValueError: for a model without any.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module whose class name ends in RMSNorm or "
            "LayerNorm, so its features cannot be aligned; set feature_weight=0"
        )
    return found


@contextmanager
def record_features(
    model: nn.Module, points: str = "pre_norm"
) -> Iterator[dict[str, Float[Tensor, "batch length hidden"]]]:
    """Inside the block, a forward pass of `model` fills the dictionary it gives.

    Keys are "<norm>.input" ("pre_norm": the residual stream that enters the norm) and
    "<norm>.output" ("post_norm": what leaves it), in the order of the forward pass. A
    recomputation by gradient checkpointing comes after the block and is not recorded.

    Raises:
        ValueError: for other `points`, or a model without norms.
    """
    if points not in FEATURE_POINTS:
        raise ValueError(
            f"feature_points must be one of {', '.join(FEATURE_POINTS)}, got {points!r}"
        )
    features: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, norm in norms(model).items():
            hook = norm.register_forward_hook(_recorder(features, name, points))
            hooks.callback(hook.remove)
        yield features


def _recorder(
    features: dict[str, Tensor], name: str, points: str
) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_norm: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if points != "post_norm":
            features[f"{name}.input"] = args[0]
        if points != "pre_norm":
            features[f"{name}.output"] = output

    return hook
