"""The trainer without logits, and where they are needed."""

import pytest
import torch

from mar_snn.distill.data import collate
from tests.distill.training import trainer, with_a_masked_start


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, {"divergence": "jsd", "temperature": 2.0}])
def test_without_logits_the_gradient_is_the_same(
    student, teacher, config, rows, options
):
    batch = with_a_masked_start([rows[i] for i in range(3)])
    found = []
    for how in ("dense", "chunked"):
        sbds = trainer(student, teacher, config(logit_loss=how, **options), rows)
        student.train().zero_grad()
        loss = sbds.compute_loss(student, batch)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in student.named_parameters()}
        found.append(grads | {"loss": loss.detach()})
    assert len(found[0]) > 20
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_logits_are_made_where_they_are_asked_for(student, teacher, config, rows):
    args = config(logit_loss="chunked")
    sbds = trainer(student, teacher, args, rows, eval_dataset=rows)
    logits = sbds.predict(rows).predictions
    assert logits.shape == (16, 12, 40)
    loss = sbds.evaluate()["eval_loss"]
    dense = trainer(student, teacher, config(logit_loss="dense"), rows)
    expected = dense.compute_loss(student.eval(), collate([*rows])).item()
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_head_that_cannot_be_read_is_refused_or_left_to_the_model(
    student, teacher, config, rows
):
    class OddHead(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) - 1

    teacher.lm_head = OddHead(16, 40)
    with pytest.raises(ValueError, match="cannot be had: the teacher's logits are not"):
        trainer(student, teacher, config(logit_loss="chunked"), rows)
    sbds = trainer(student, teacher, config(), rows)
    assert sbds.compute_loss(student, collate([rows[0]])) > 0


@pytest.mark.usefixtures("float64")
def test_heads_that_differ_by_padding_are_compared_on_the_words_that_exist(
    student, teacher, config, rows
):
    batch = collate([rows[0]])
    expected = trainer(student, teacher, config(), rows).compute_loss(student, batch)
    teacher.resize_token_embeddings(48)
    for how in ("dense", "chunked"):
        sbds = trainer(student, teacher, config(vocab_size=40, logit_loss=how), rows)
        torch.testing.assert_close(sbds.compute_loss(student, batch), expected)
