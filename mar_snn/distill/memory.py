"""What a training run will need, before it starts: a step on tensors without memory."""

import copy
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer

from mar_snn.distill.objective import Objective

__all__ = ["MemoryEstimate", "estimate_memory"]


class MemoryEstimate(NamedTuple):
    """Bytes of one process at the height of a training step."""

    student: int
    teacher: int
    gradients: int
    optimizer: int
    #: what backward needs of a batch, and the passing results beside it
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def shared(
        self, student: int = 1, gradients: int = 1, teacher: int = 1
    ) -> "MemoryEstimate":
        """That of one of several processes.

        Args:
            student: how many share the student's weights (FSDP2).
            gradients: how many share its gradients and optimizer states (FSDP2, and
                DeepSpeed's second stage).
            teacher: how many share the teacher's weights.
        """
        return self._replace(
            student=self.student // student,
            teacher=self.teacher // teacher,
            gradients=self.gradients // gradients,
            optimizer=self.optimizer // gradients,
        )

    def table(self) -> Table:
        """A line for each part, in GiB or, below one of them, in MiB."""
        unit, name_of_unit = (2**30, "GiB") if self.total >= 2**30 else (2**20, "MiB")
        table = Table(title="Memory, estimated", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, size in (self._asdict() | {"total": self.total}).items():
            table.add_row(name, f"{size / unit:.1f} {name_of_unit}")
        return table


def estimate_memory(objective: Objective, length: int) -> MemoryEstimate:
    """The memory of a step of `per_device_train_batch_size` rows of `length` tokens.

    Two steps run on copies of both models whose tensors have shapes and no memory,
    with the options of `objective.args`: optimizer, checkpointing, bf16, the kind of
    loss. What a device's libraries take for themselves, some hundred MB to 2 GB, comes
    on top. On a GPU the loss is that of the PyTorch path, which needs more than the
    Triton kernel.

    Args:
        objective: of the trainer, or made from two models and an SBDSConfig; nothing
            may be attached to it.
        length: tokens of a row.

    Raises:
        ValueError: where a model asks for the numbers in a tensor, such as experts that
            run one by one.
    """
    args = objective.args
    fake = detect_fake_mode([*objective.student.parameters()]) or FakeTensorMode()
    with FakeCopyMode(fake):
        twin = copy.deepcopy(objective)
    twin.backend = "torch"
    make_optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, twin.student)
    with fake:
        student = twin.student.train()
        if args.gradient_checkpointing:
            # its name up to transformers 5.22 and after
            enable = getattr(student, "activation_checkpointing_enable", None)
            enable = enable or student.gradient_checkpointing_enable
            enable(args.gradient_checkpointing_kwargs)
        trained = [p for p in student.parameters() if p.requires_grad]
        # one kernel for all weights does not know tensors without memory
        optimizer = make_optimizer(trained, **options | {"fused": False})
        device = student.device
        rows = args.per_device_train_batch_size
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        tokens = torch.tensor(float(rows * length), device=device)
        with _LiveBytes() as live, twin.attached():
            # the second step finds the states of the optimizer there
            for _ in range(2):
                try:
                    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                        loss = twin(student, {"input_ids": ids}, ids, tokens).loss
                    loss.backward()
                except RuntimeError as error:  # it asks for the numbers in a tensor
                    raise ValueError(
                        f"the memory of a {type(student).__name__} that a "
                        f"{type(twin.teacher).__name__} teaches cannot be estimated: "
                        f"its step needs tensors with memory: {error}"
                    ) from error
                optimizer.step()
                optimizer.zero_grad()
    student_size = _size(student.parameters())
    teacher_size = _size(twin.teacher.parameters())
    gradients = _size(trained)
    states = _size(
        state
        for states in optimizer.state.values()
        for state in states.values()
        if isinstance(state, Tensor)
    )
    # weights were there before: what lived on top of them is the rest
    rest = live.peak - gradients - states
    return MemoryEstimate(student_size, teacher_size, gradients, states, max(rest, 0))


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages among `tensors`."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # an operation that returns one of its arguments makes nothing
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        if func is torch.ops.aten._grouped_mm.default and isinstance(
            args[0], FakeTensor
        ):
            results = _grouped_product(*args[:3])
        else:
            results = func(*args, **(kwargs or {}))
        for tensor in _tensors(results):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return results

    def _free(self, size: int) -> None:
        self.now -= size


def _grouped_product(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    """The product of groups, without values: experts' outputs, or weights' gradients.

    PyTorch's own knows bfloat16 alone where there is no memory, and every dtype where
    there is.
    """
    shape: tuple[int, ...] = (a.shape[-2], b.shape[-1])
    if a.dim() == b.dim():
        count = len(a) if a.dim() == 3 or offsets is None else len(offsets)
        shape = (count, *shape)
    return a.new_empty(shape)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
