"""The chunked loss is the dense one: values, every gradient, and its own promises."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mar_snn.distill import (
    bidirectional_kl,
    chunked_bidirectional_kl,
    divergences,
    products,
)
from mar_snn.distill.heads import LogitTransform

WIDTH, TEACHER_WIDTH = 16, 24


class SimpleHead(nn.Module):
    """A head whose parameters are tensors of a graph."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias


def some_pair(*tokens, vocab=1000, teacher_vocab=None, dtype=torch.float64, bias=True):
    """Hidden states and heads of a student and of a wider teacher; KL about one nat."""
    hidden = torch.randn(*tokens, WIDTH, dtype=dtype).requires_grad_()
    head = nn.Linear(WIDTH, vocab, bias=bias, dtype=dtype)
    teacher_hidden = torch.randn(*tokens, TEACHER_WIDTH, dtype=dtype)
    teacher_head = nn.Linear(TEACHER_WIDTH, teacher_vocab or vocab, dtype=dtype)
    with torch.no_grad():
        head.weight *= 2
        teacher_head.weight *= 2
    return hidden, head, teacher_hidden, teacher_head


def with_gradients(result, hidden, head):
    """The three terms and the gradients of hidden states and head, in one list."""
    result.loss.backward()
    leaves = [hidden, *(head.parameters() if isinstance(head, nn.Module) else [head])]
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [*result, *gradients]


def of_both(pair, labels=None, *, chunk_size=None, transforms=(), **options):
    """Terms and gradients of the chunked and of the dense loss."""
    hidden, head, teacher_hidden, teacher_head = pair
    names = ("student_transform", "teacher_transform")
    named = dict(zip(names, transforms, strict=False))
    chunked = chunked_bidirectional_kl(
        *pair, labels, chunk_size=chunk_size, **named, **options
    )
    ours = with_gradients(chunked, hidden, head)
    bend, bend_teacher = transforms or (LogitTransform(), LogitTransform())
    dense = bidirectional_kl(
        bend(head(hidden)),
        bend_teacher(teacher_head(teacher_hidden)),
        labels,
        **options,
    )
    return ours, with_gradients(dense, hidden, head)


def assert_equal(ours, expected, tolerance=1e-12):
    """Equal but for that share of the largest element."""
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        largest = max(other.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("vocab", [1000, 1003])
@pytest.mark.parametrize(("tokens", "chunk_size"), [(1, 1), (7, 3), (63, 32), (63, 99)])
def test_the_chunked_loss_is_the_dense_one(tokens, chunk_size, vocab):
    pair = some_pair(tokens, vocab=vocab)
    ours, expected = of_both(pair, chunk_size=chunk_size)
    assert all(gradient.any() for gradient in ours[3:])
    assert_equal(ours, expected)


@pytest.mark.parametrize("divergence", ["sbds", "skew", "jsd"])
def test_every_option_means_what_it_means_in_the_dense_loss(divergence):
    pair = some_pair(3, 7, dtype=torch.float64)
    labels = torch.randint(0, 1000, (3, 7))
    labels[0, 2:] = labels[2] = -100
    ours, expected = of_both(
        pair,
        labels,
        chunk_size=4,
        alpha=0.5,
        beta=0.4,
        temperature=1.7,
        num_items=torch.tensor(30),
        vocab_size=990,
        divergence=divergence,
        transforms=(LogitTransform(0.5, 2.0), LogitTransform(3.0)),
    )
    assert_equal(ours, expected, 1e-13)
    assert not ours[4][990:].any()


def test_tiles_of_words_that_do_not_divide_the_vocabulary(monkeypatch):
    monkeypatch.setattr(products, "_TILE", 100 * WIDTH)
    assert_equal(*of_both(some_pair(7, vocab=1003), chunk_size=3))


def test_padded_heads_are_compared_on_the_words_that_exist():
    hidden, head, teacher_hidden, teacher_head = some_pair(
        7, vocab=1024, teacher_vocab=1003
    )
    with torch.no_grad():
        # padding that would be the most likely word
        head.bias[1003:] = 100.0
    ours = with_gradients(
        chunked_bidirectional_kl(
            hidden, head, teacher_hidden, teacher_head, vocab_size=1003
        ),
        hidden,
        head,
    )
    logits = head(hidden), teacher_head(teacher_hidden)
    trimmed = with_gradients(
        bidirectional_kl(logits[0][..., :1003], logits[1]), hidden, head
    )
    assert_equal(ours, trimmed)
    assert not ours[4][1003:].any()
    for sizes in (None, 1004):
        with pytest.raises(ValueError, match=r"1024 (words )?and the teacher 1003"):
            chunked_bidirectional_kl(
                hidden, head, teacher_hidden, teacher_head, vocab_size=sizes
            )


def test_a_head_may_be_a_tensor_and_have_no_bias():
    hidden, head, teacher_hidden, teacher_head = some_pair(7, bias=False)
    expected = with_gradients(
        chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head),
        hidden,
        head,
    )
    weight = head.weight.detach().clone().requires_grad_()
    ours = chunked_bidirectional_kl(hidden, weight, teacher_hidden, teacher_head)
    for mine, other in zip(with_gradients(ours, hidden, weight), expected, strict=True):
        assert torch.equal(mine, other)


def test_finite_differences_agree_in_float64():
    hidden, head, teacher_hidden, teacher_head = some_pair(
        4, vocab=9, dtype=torch.float64
    )
    labels = torch.tensor([1, -100, 2, 3])

    def loss(hidden, weight, bias):
        return chunked_bidirectional_kl(
            hidden,
            SimpleHead(weight, bias),
            teacher_hidden,
            teacher_head,
            labels,
            chunk_size=3,
            student_transform=LogitTransform(0.8, 1.5),
        ).loss

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


def test_only_the_gradients_that_are_wanted_are_made():
    hidden, head, teacher_hidden, teacher_head = some_pair(7)
    both = with_gradients(
        chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head),
        hidden,
        head,
    )
    head.requires_grad_(False)
    teacher_hidden.requires_grad_()
    chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head).loss.backward()
    assert torch.equal(hidden.grad, both[3])
    assert [p.grad for p in (*head.parameters(), teacher_hidden)] == [None] * 3
    assert [p.grad for p in teacher_head.parameters()] == [None] * 2
    head.requires_grad_()
    hidden.requires_grad_(False)
    chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head).loss.backward()
    assert torch.equal(head.weight.grad, both[4])
    with torch.no_grad():
        result = chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head)
    assert not result.loss.requires_grad
    assert torch.equal(result.loss, both[0])


@pytest.mark.parametrize("divergence", ["sbds", "skew", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(dtype, divergence):
    hidden, head, _, _ = some_pair(63, vocab=1003, dtype=dtype)
    result = chunked_bidirectional_kl(
        hidden, head, hidden, head, chunk_size=20, divergence=divergence
    )
    assert [term.item() for term in result] == [0.0, 0.0, 0.0]
    result.loss.backward()
    for leaf in (hidden, *head.parameters()):
        assert leaf.grad.eq(0).all()


def test_masked_tokens_do_not_count_whatever_they_hold():
    hidden, head, teacher_hidden, teacher_head = some_pair(3, 5)
    labels = torch.zeros(3, 5, dtype=torch.long)
    labels[0, 2:] = labels[2] = -100
    few = hidden.detach()[labels == 0].requires_grad_()
    expected = with_gradients(
        chunked_bidirectional_kl(few, head, teacher_hidden[labels == 0], teacher_head),
        few,
        head,
    )
    with torch.no_grad():
        hidden[2], teacher_hidden[2, 0], hidden[0, 4] = torch.nan, torch.inf, -torch.inf
    ours = with_gradients(
        chunked_bidirectional_kl(
            hidden, head, teacher_hidden, teacher_head, labels, chunk_size=4
        ),
        hidden,
        head,
    )
    assert not ours[3][labels != 0].any()
    ours[3] = ours[3][labels == 0]
    assert_equal(ours, expected)


def test_nothing_to_learn_from_is_a_loss_of_zero():
    pair = some_pair(2, 3)
    labels = torch.full((2, 3), -100)
    ours = with_gradients(chunked_bidirectional_kl(*pair, labels), *pair[:2])
    assert not any(value.any() for value in ours)


def test_no_tokens_at_all_are_a_loss_of_zero_too():
    pair = some_pair(2, 0)
    ours = with_gradients(chunked_bidirectional_kl(*pair), *pair[:2])
    assert not any(value.any() for value in ours)


@pytest.mark.usefixtures("float64")
def test_parts_of_a_batch_add_up_to_the_whole():
    hidden, head, teacher_hidden, teacher_head = some_pair(10)
    whole = chunked_bidirectional_kl(hidden, head, teacher_hidden, teacher_head).loss
    parts = [
        chunked_bidirectional_kl(
            hidden[s], head, teacher_hidden[s], teacher_head, num_items=10
        ).loss
        for s in (slice(0, 3), slice(3, 10))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_a_retained_graph_gives_its_gradient_again():
    pair = some_pair(7)
    loss = 3 * chunked_bidirectional_kl(*pair).loss
    first, second = (
        torch.autograd.grad(loss, [pair[0], *pair[1].parameters()], retain_graph=True)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    once, _ = of_both(pair)
    assert_equal(first, [3 * gradient for gradient in once[3:]])


def test_gradients_of_gradients_are_refused():
    hidden, *others = some_pair(3)
    loss = chunked_bidirectional_kl(hidden, *others).loss.square()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- memory and waiting


class Watch(TorchDispatchMode):
    """The largest tensor that any operation returns, and the operations."""

    def __init__(self):
        super().__init__()
        self.largest, self.operations = 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        self.operations.add(operation.overloadpacket.__name__)
        for found in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(found, torch.Tensor):
                self.largest = max(self.largest, found.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_times_words_and_none_that_grows_with_tokens(dtype):
    largest = []
    for tokens in (64, 256):
        pair = some_pair(tokens, vocab=1003, dtype=dtype)
        labels = torch.zeros(tokens, dtype=torch.long)
        with Watch() as watch:
            chunked_bidirectional_kl(*pair, labels, chunk_size=8).loss.backward()
        largest.append(watch.largest)
        # nothing waits for the device: no number, no index is read from it
        assert not watch.operations & {"_local_scalar_dense", "nonzero", "index"}
    # weights of the teacher; two buffers of a chunk's scores
    assert largest == [max(1003 * TEACHER_WIDTH, 2 * 8 * 1003)] * 2


def test_a_chunk_has_as_many_tokens_as_make_16_million_scores():
    pair = some_pair(64, vocab=1003)
    sizes = []

    def note(student, *others):
        sizes.append(len(student))
        return divergences.compare_rows(student, *others)

    scores = mock.patch("mar_snn.distill.chunked._SCORES", 20 * 1003 + 5)
    with scores, mock.patch("mar_snn.distill.chunked.compare_rows", note):
        chunked_bidirectional_kl(*pair)
    assert sizes == [20, 20, 20, 4]


# what the compiler asks of tensors behind a graph break
@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_callers_may_call_it():
    pair = some_pair(7)

    def step(hidden):
        return 2 * chunked_bidirectional_kl(2 * hidden, *pair[1:]).loss

    expected = torch.autograd.grad(step(pair[0]), pair[0])
    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(pair[0]), pair[0]), expected
    )


# ---- what is refused


def test_what_does_not_fit_is_refused():
    hidden, head, teacher_hidden, teacher_head = pair = some_pair(7)
    with pytest.raises(ValueError, match=r"same tokens, got \(7,\) and \(6,\)"):
        chunked_bidirectional_kl(hidden, head, teacher_hidden[:6], teacher_head)
    with pytest.raises(ValueError, match="student's head takes vectors of 24"):
        chunked_bidirectional_kl(hidden, teacher_head, teacher_hidden, teacher_head)
    with pytest.raises(ValueError, match="teacher's head takes vectors of 16"):
        chunked_bidirectional_kl(hidden, head, teacher_hidden, head)
    with pytest.raises(ValueError, match="one token or more, got 0"):
        chunked_bidirectional_kl(*pair, chunk_size=0)
    with pytest.raises(ValueError, match="temperature must be above zero"):
        chunked_bidirectional_kl(*pair, temperature=0.0)
    with pytest.raises(ValueError, match="'auto', 'torch', 'triton', got 'cuda'"):
        chunked_bidirectional_kl(*pair, backend="cuda")
    with pytest.raises(RuntimeError, match="tensors are on cpu; use backend='auto'"):
        chunked_bidirectional_kl(*pair, backend="triton")
