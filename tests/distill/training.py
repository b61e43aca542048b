"""What the tests of the trainer share."""

from transformers import LlamaConfig, LlamaForCausalLM

from mar_snn.distill import SBDSTrainer
from mar_snn.distill.data import collate

TERMS = {"forward_kl", "reverse_kl", "features"}
RATES = {
    "firing_rate",
    "firing_rate/mixer.in",
    "firing_rate/mixer.out",
    "firing_rate/mlp.in",
    "firing_rate/mlp.out",
}


def trainer(student, teacher, args, rows, **kwargs) -> SBDSTrainer:
    kwargs = {"train_dataset": rows, "data_collator": collate} | kwargs
    return SBDSTrainer(student, teacher, args, **kwargs)


def llama(width: int = 16) -> LlamaForCausalLM:
    """A transformer of two blocks whose norms have the names of Llamba's."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


def losses(trainer: SBDSTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def with_a_masked_start(rows: list[dict]) -> dict:
    """Rows lose as many labels as their first token says: unequal token counts."""
    batch = collate(rows)
    labels = batch["labels"].clone()
    for row in labels:
        row[: int(row[0]) % 12] = -100
    return batch | {"labels": labels}
