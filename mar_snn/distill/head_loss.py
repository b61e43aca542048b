"""A loss from hidden states, computed in the student's head while it runs.

There, and for some kinds of parallelism only there, the head's weight is whole, and its
gradient takes the way that the wrapper of the model has prepared.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mar_snn.distill.checks import forward_takes
from mar_snn.distill.heads import LogitTransform, logit_transform
from mar_snn.distill.losses import BidirectionalKL

__all__ = ["HeadLoss"]


class HeadLoss:
    """Compares two models where their heads stand, without their logits.

    Inside `attached()`: run the teacher, call `compare_with`, run the student, and read
    `divergence`. Both run with `logits_to_keep=1`.

    Args:
        student: a causal language model of transformers.
        teacher: another one.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        self._models = {"student": student, "teacher": teacher}
        #: why it cannot be done, where it cannot
        self.obstacle = ""
        self._transforms: dict[str, LogitTransform] = {}
        for name, model in self._models.items():
            transform = logit_transform(model)
            if transform is None:
                self.obstacle = f"the {name}'s logits are not those of a linear head"
                return
            if not forward_takes(model, "logits_to_keep"):
                self.obstacle = f"the {name}'s forward takes no logits_to_keep"
                return
            self._transforms[f"{name}_transform"] = transform
        self.clear()

    def clear(self) -> None:
        """Forget the last batch."""
        self._hidden: dict[str, Float[Tensor, "batch length hidden"]] = {}
        self._compare: Callable[..., BidirectionalKL] | None = None
        self._divergence: BidirectionalKL | None = None

    def compare_with(self, compare: Callable[..., BidirectionalKL]) -> None:
        """Say what the head computes: `chunked_bidirectional_kl` or a partial of it."""
        self._compare = compare

    @property
    def divergence(self) -> BidirectionalKL:
        """What was computed in the student's last pass.

        Raises:
            RuntimeError: where its head was not reached.
        """
        if self._divergence is None:
            raise RuntimeError("the student's forward pass did not reach its head")
        return self._divergence

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch both models inside the block."""
        with ExitStack() as hooks:
            for name, model in self._models.items():
                decoder = getattr(model, model.base_model_prefix)
                handle = decoder.register_forward_hook(self._keeper(name))
                hooks.callback(handle.remove)
            head = self._models["student"].get_output_embeddings()
            hooks.callback(head.register_forward_hook(self._at_the_head).remove)
            yield

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_decoder: nn.Module, _args: Any, output: Any) -> None:
            self._hidden[name] = output[0]

        return hook

    def _at_the_head(self, head: nn.Module, _args: Any, _output: Any) -> None:
        if self._compare is None:
            return
        student, teacher = self._hidden["student"], self._hidden["teacher"]
        self._divergence = self._compare(
            student,
            head,
            teacher.to(student.device),
            self._models["teacher"].get_output_embeddings(),
            **self._transforms,
        )
