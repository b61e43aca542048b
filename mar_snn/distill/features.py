"""Features at the norms of a model, and how far the student's are from the teacher's.

transformers' own `hidden_states` end behind the last norm and skip the norm in the
middle of a block, so they cannot give pre-norm features; hooks on the norms can.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mar_snn.distill.losses import feature_distance

__all__ = [
    "FEATURE_POINTS",
    "FeatureAlignment",
    "block_pairs",
    "blocks",
    "norm_pairs",
    "norms",
    "record_features",
]

#: Where features are taken; see `record_features`.
FEATURE_POINTS = ("pre_norm", "post_norm", "both")


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a model's residual stream by name.

    These are modules whose class says RMSNorm or LayerNorm, without those that stand
    beside projections inside of a block, such as the norms of queries and keys.

    Raises:
        ValueError: for a model without any.
    """
    block_names = tuple(blocks(model))
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
        and not _beside_projections(model, name.rpartition(".")[0], block_names)
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no module whose class name ends in RMSNorm or "
            "LayerNorm, so its features cannot be aligned; set feature_weight=0"
        )
    return found


def _beside_projections(
    model: nn.Module, holder: str, block_names: tuple[str, ...]
) -> bool:
    """Whether a module is a part of a block and multiplies with weights itself."""
    inside = holder.startswith(tuple(f"{name}." for name in block_names))
    # adapters and quantized layers are no nn.Linear, and have its sizes
    return inside and any(
        hasattr(child, "in_features")
        for child in model.get_submodule(holder).children()
    )


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by name: what transformers keeps on one device."""
    classes = set(getattr(model, "_no_split_modules", None) or ())
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in found)
        # FSDP2 puts its name before that of the class
        if type(module).__name__.removeprefix("FSDP") in classes and not inside:
            found[name] = module
    return found


def block_pairs(
    student: nn.Module, teacher: nn.Module, layers: Mapping[int, int] | None = None
) -> dict[int, int]:
    """The teacher's block for each block of the student that is aligned.

    `layers` says which; None: each with its own.

    Raises:
        ValueError: where a block has no counterpart.
    """
    depths = [len(blocks(model)) for model in (student, teacher)]
    if layers is None:
        if depths[0] != depths[1]:
            raise ValueError(
                f"the student has {depths[0]} blocks and the teacher {depths[1]}: say "
                "with feature_layers which block follows which, or set feature_weight=0"
            )
        return {i: i for i in range(depths[0])}
    missing = [
        f"{i}: {j}"
        for i, j in layers.items()
        if i not in range(depths[0]) or j not in range(depths[1])
    ]
    if missing:
        raise ValueError(
            f"feature_layers must map blocks 0..{depths[0] - 1} of the student to "
            f"blocks 0..{depths[1] - 1} of the teacher, got {', '.join(missing)}"
        )
    return dict(layers)


def norm_pairs(
    student: nn.Module, teacher: nn.Module, layers: Mapping[int, int]
) -> dict[str, str]:
    """The teacher's norm for each of the student's that is aligned, by name.

    Norms in blocks, paired by `layers`, are paired by their names there; norms outside
    of blocks by their order.

    Raises:
        ValueError: where a norm has no counterpart.
    """
    wanted = _places(teacher)
    pairs: dict[str, str] = {}
    for (block, norm), name in _places(student).items():
        if block != _OUTSIDE and block not in layers:
            continue
        other = wanted.get((layers.get(block, block), norm))
        if other is None:
            raise ValueError(
                "the norms of student and teacher have different names, so their "
                f"features cannot be aligned: {type(student).__name__} has {name}, "
                f"{type(teacher).__name__} has nothing like it; set feature_weight=0 "
                "or use a teacher of a similar architecture"
            )
        pairs[name] = other
    return pairs


#: The block of a norm that stands in none.
_OUTSIDE = -1


def _places(model: nn.Module) -> dict[tuple[int, str], str]:
    """(block, name in the block) -> name; outside of blocks the name is a number."""
    prefixes = [f"{name}." for name in blocks(model)]
    places: dict[tuple[int, str], str] = {}
    for name in norms(model):
        block = next((i for i, p in enumerate(prefixes) if name.startswith(p)), None)
        if block is None:
            outside = sum(where == _OUTSIDE for where, _ in places)
            places[_OUTSIDE, str(outside)] = name
        else:
            places[block, name.removeprefix(prefixes[block])] = name
    return places


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
    features: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        _look_at_norms(model, points, features.__setitem__, hooks)
        yield features


def _look_at_norms(
    model: nn.Module,
    points: str,
    look: Callable[[str, Tensor], None],
    hooks: ExitStack,
) -> None:
    """Call `look(key, feature)` in every forward pass until `hooks` is left."""
    if points not in FEATURE_POINTS:
        raise ValueError(
            f"feature_points must be one of {', '.join(FEATURE_POINTS)}, got {points!r}"
        )

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_norm: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            if points != "post_norm":
                look(f"{name}.input", args[0])
            if points != "pre_norm":
                look(f"{name}.output", output)

        return hook

    for name, norm in norms(model).items():
        hooks.callback(norm.register_forward_hook(watch(name)).remove)


class FeatureAlignment:
    """Distances of a student's features to its teacher's, taken while it runs.

    Inside `attached()`, a pass of the teacher leaves its features here and the next
    pass of the student compares its own as they arise, so only one set of features is
    held. Where gradients are checkpointed, backward must come before the block ends: it
    runs the student's blocks again and must find the same hooks.

    Args:
        student: a model of transformers.
        teacher: another one; see `norm_pairs`.
        points: as for `record_features`.
        distance: as for `feature_distance`.
        layers: as for `block_pairs`.

    Raises:
        ValueError: where a block or norm has no counterpart.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        points: str = "pre_norm",
        distance: str = "rms",
        layers: Mapping[int, int] | None = None,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.points, self.distance = points, distance
        self.layers = block_pairs(student, teacher, layers)
        self.pairs = norm_pairs(student, teacher, self.layers)
        #: maps the student's features to the teacher's width, where that differs
        self.projections: dict[str, nn.Linear] = {}
        for name, other in self.pairs.items():
            width = _width(student.get_submodule(name))
            target = _width(teacher.get_submodule(other))
            if width != target:
                self.projections[name] = nn.Linear(width, target, bias=False)
        #: whether each block of the student reads what the teacher's block reads
        self.teacher_forcing = False
        self.clear()

    def clear(self) -> None:
        """Forget the features and distances of the last batch."""
        self._targets: dict[str, Tensor] = {}
        self._distances: dict[str, Tensor] = {}
        self._replaced: list[tuple[Tensor, Tensor]] = []

    @property
    def distances(self) -> list[Float[Tensor, "batch length"]]:
        """The distances of the last pass of the student, one for each feature.

        Raises:
            RuntimeError: where its norms were not reached.
        """
        if not self._distances:
            raise RuntimeError("no norm of the student was reached by its forward pass")
        return list(self._distances.values())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch both models inside the block."""
        with ExitStack() as hooks:
            _look_at_norms(self.teacher, self.points, self._keep, hooks)
            _look_at_norms(self.student, self.points, self._compare, hooks)
            sources = [*blocks(self.teacher).values()]
            for i, block in enumerate(blocks(self.student).values()):
                # the first block reads the embedding, which would lose its gradient
                if i > 0 and i in self.layers:
                    source = sources[self.layers[i]]
                    keep, replace = self._exchange()
                    hooks.callback(source.register_forward_pre_hook(keep).remove)
                    hooks.callback(block.register_forward_pre_hook(replace).remove)
            hooks.callback(self.clear)
            yield

    def _keep(self, key: str, feature: Tensor) -> None:
        self._targets.setdefault(key, feature)

    def _compare(self, key: str, feature: Tensor) -> None:
        name, _, point = key.rpartition(".")
        target = self._targets.get(f"{self.pairs.get(name)}.{point}")
        if target is None:
            return
        for replacement, own in self._replaced:
            if feature is replacement:
                feature = own
        if name in self.projections:
            feature = self.projections[name](feature)
        distance = feature_distance(feature, target.to(feature.device), self.distance)
        # gradient checkpointing comes here again: the graph that it rebuilds needs the
        # same operations, and their result is known
        self._distances.setdefault(key, distance)

    def _exchange(self) -> tuple[Callable[..., None], Callable[..., Any]]:
        """A hook that keeps what a block of the teacher reads, one that hands it on."""
        read: list[Tensor] = []

        def keep(_block: nn.Module, args: tuple[Any, ...]) -> None:
            read[:] = args[:1] if self.teacher_forcing else ()

        def replace(_block: nn.Module, args: tuple[Any, ...]) -> Any:
            if not (self.teacher_forcing and self._targets):
                return None
            replacement = read[0].to(args[0])
            self._replaced.append((replacement, args[0]))
            return (replacement, *args[1:])

        return keep, replace


def _width(norm: nn.Module) -> int:
    """How many features a norm scales; 0 where it has no weight."""
    weight: Any = getattr(norm, "weight", None)
    return 0 if weight is None else weight.numel()
