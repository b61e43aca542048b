"""What stands between head and logits is found in real models."""

import math

import pytest
import torch
import transformers
from torch import nn

from mar_snn.distill import bidirectional_kl, chunked_bidirectional_kl
from mar_snn.distill.heads import UNCHANGED, LogitTransform, logit_transform

TINY = {
    "vocab_size": 67,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "Llama": ({}, UNCHANGED),
    "Gemma2": ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    "Cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    # one name, two directions
    "Granite": ({"logits_scaling": 13.0}, LogitTransform(1 / 13)),
    "HyperCLOVAX": ({"logits_scaling": 13.0}, LogitTransform(13.0)),
}


def tiny(name, **options):
    config = getattr(transformers, f"{name}Config")(**TINY | options)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def what_the_head_gets(model, ids):
    """The hidden states that enter the head, and the model's logits."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    logits = model(input_ids=ids).logits
    hook.remove()
    return seen[0], logits


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MODELS)
def test_the_transform_of_a_model_is_found_and_gives_its_loss(name):
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name}")
    options, expected = MODELS[name]
    model = tiny(name, **options)
    found = logit_transform(model)
    assert found.scale == pytest.approx(expected.scale, rel=1e-6)
    assert found.soft_cap == expected.soft_cap
    head = model.get_output_embeddings()
    with torch.no_grad():
        # logits of a trained model's size
        head.weight.normal_(std=3.0)
    hidden, logits = what_the_head_gets(model, torch.randint(1, 67, (2, 5)))
    torch.testing.assert_close(found(head(hidden)), logits)
    teacher_hidden, teacher_head = torch.randn(2, 5, 12), nn.Linear(12, 67)
    dense = bidirectional_kl(logits, teacher_head(teacher_hidden))
    chunked = chunked_bidirectional_kl(
        *(hidden, head, teacher_hidden, teacher_head), student_transform=found
    )
    torch.testing.assert_close(chunked.loss, dense.loss)
    gradients = [
        torch.autograd.grad(result.loss, [hidden, head.weight], retain_graph=True)
        for result in (chunked, dense)
    ]
    torch.testing.assert_close(*gradients)


def test_our_own_model_has_logits_that_are_its_heads_output(student):
    assert logit_transform(student) == UNCHANGED


def test_a_model_of_16_bits_has_its_exact_transform():
    model = tiny("Granite", logits_scaling=13.0).bfloat16()
    assert logit_transform(model).scale == pytest.approx(1 / 13, rel=1e-6)


def test_the_model_is_as_it_was(student):
    ids = torch.randint(1, 40, (1, 5))
    student.train()
    before = student(input_ids=ids).logits
    logit_transform(student)
    assert student.training
    assert torch.equal(student(input_ids=ids).logits, before)


class Wrapper(nn.Module):
    """A model that does something else to its head's output."""

    device = torch.device("cpu")

    def __init__(self, change, head=None):
        super().__init__()
        self.head, self.change = head or nn.Linear(4, 9), change

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        logits = self.change(self.head(torch.ones(1, 1, 4)))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class Gained(nn.Linear):
    """A head that is not simply linear."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z + 1,
        lambda z: z * torch.arange(1, 10),
        lambda z: z.clamp(-30, 30),
        lambda z: z.log_softmax(-1),
        lambda z: 0 * z,
        lambda z: z[..., :-1],
        lambda z: z.index_fill(-1, torch.tensor([3]), -math.inf),
        lambda z: z.bfloat16() / 3,
    ],
)
def test_what_no_transform_describes_is_none(change):
    assert logit_transform(Wrapper(change)) is None


def test_a_negative_scale_and_a_low_cap_are_found():
    model = Wrapper(lambda z: -3 * torch.tanh(z / 2))
    assert logit_transform(model) == LogitTransform(-1.5, 3.0)


def test_heads_that_are_not_simply_linear_are_left_to_the_model():
    assert logit_transform(Wrapper(lambda z: z)) == UNCHANGED
    assert logit_transform(Wrapper(lambda z: z, Gained(4, 9))) is None
    model = Wrapper(lambda z: z)
    model.get_output_embeddings = lambda: None
    assert logit_transform(model) is None


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be a finite number other than 0"):
        LogitTransform(scale)


@pytest.mark.parametrize("soft_cap", [0.0, -30.0, math.inf, math.nan])
def test_a_soft_cap_that_is_none_is_refused(soft_cap):
    with pytest.raises(ValueError, match="soft_cap must be above zero, or None"):
        LogitTransform(1.0, soft_cap)
