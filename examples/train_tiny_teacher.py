"""Train the tiny dense Llamba and its tokenizer that `mar_snn.assets` carries.

    python examples/train_tiny_teacher.py

The text is that of the Python that runs this script: the standard library's sources and
help topics, one document in twenty held out by the checksum of its name. An hour on two
cores. With --resume_from_checkpoint it goes on where an interrupted run stopped.
"""

import hashlib
import math
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from mar_snn.console import show_what_can_be_shown
from mar_snn.distill.data import collate, pack, standard_library_text
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM

END_OF_TEXT = "<|endoftext|>"


@dataclass
class TeacherArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of the committed teacher."""

    output_dir: str = field(default="outputs/tiny_teacher")
    asset_dir: str = field(
        default="mar_snn/assets/tiny_llamba", metadata={"help": "where the result goes"}
    )
    max_length: int = field(default=512, metadata={"help": "tokens per row"})
    vocab_size: int = field(default=4096, metadata={"help": "tokens of the tokenizer"})
    num_train_epochs: float = field(default=6.0)
    per_device_train_batch_size: int = field(default=8)
    per_device_eval_batch_size: int = field(default=8)
    learning_rate: float = field(default=3e-3)
    lr_scheduler_type: str = field(default="cosine")
    warmup_steps: float = field(default=100)
    weight_decay: float = field(default=0.5)
    adam_beta2: float = field(default=0.95)
    bf16: bool = field(default=True)
    logging_steps: float = field(default=50)
    eval_strategy: str = field(default="steps")
    eval_steps: float = field(default=500)
    save_steps: float = field(default=500)
    save_total_limit: int = field(default=2)
    report_to: str = field(default="none")
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        # bfloat16 on a CPU must be asked for in so many words
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        super().__post_init__()


def train_tokenizer(texts: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text has tokens, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts["text"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> LlambaConfig:
    """Llamba-1B's proportions at 4.3 M parameters."""
    return LlambaConfig(
        vocab_size=len(tokenizer),
        d_model=256,
        n_layer=4,
        mlp_cfg={"intermediate_size": 640},
        ssm_cfg={"d_state": 64, "n_v_heads": 4, "n_qk_heads": 4},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def model_card(
    args: TeacherArguments, texts: DatasetDict, rows: DatasetDict, loss: float
) -> str:
    """What the files are, and how to make them again."""
    digest = hashlib.sha256("".join(texts["train"]["text"]).encode()).hexdigest()
    characters = sum(map(len, texts["heldout"]["text"]))
    tokens = rows["heldout"].num_rows * args.max_length
    return f"""---
license: apache-2.0
library_name: mar-snn
---
# Tiny Llamba, the dense teacher of the mar-snn demo

A Llamba (arXiv 2502.14458) of 4.3 M parameters and a byte-level BPE tokenizer of
{args.vocab_size} tokens, trained from scratch, in bfloat16.

| | |
|---|---|
| command | `python {" ".join(["examples/train_tiny_teacher.py", *sys.argv[1:]])}` |
| training text | sources of the standard library and `pydoc_data.topics` of Python \
{platform.python_version()}: {texts["train"].num_rows} documents, \
{rows["train"].num_rows * args.max_length:,} tokens, sha256 {digest[:16]}; \
definition: `mar_snn.distill.data.standard_library_text` |
| held out | {texts["heldout"].num_rows} documents ({characters:,} characters, \
{tokens:,} tokens), one in twenty by the checksum of its name |
| held-out loss | {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}, rows of \
{args.max_length} tokens |
| training | {args.num_train_epochs:g} epochs, batch \
{args.per_device_train_batch_size} x {args.max_length} tokens, AdamW \
{args.learning_rate:g}, {args.lr_scheduler_type.value}, \
weight decay {args.weight_decay:g}, \
bfloat16 autocast |
| seed | {args.seed} |
| versions | torch {torch.__version__}, transformers {transformers.__version__} |

Its text is Python source and documentation under the PSF licence; it knows no other.
"""


def main() -> None:
    """Train, evaluate, and write the assets."""
    (args,) = HfArgumentParser(TeacherArguments).parse_args_into_dataclasses()
    torch.set_flush_denormal(True)
    set_seed(args.seed)
    texts = standard_library_text()
    tokenizer = train_tokenizer(texts["train"], args.vocab_size)
    rows = DatasetDict(
        {split: pack(docs, tokenizer, args.max_length) for split, docs in texts.items()}
    )
    trainer = Trainer(
        model=LlambaForCausalLM(tiny_config(tokenizer)),
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["heldout"],
        data_collator=collate,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    model = trainer.model.to(torch.bfloat16)
    loss = trainer.evaluate()["eval_loss"]
    assets = Path(args.asset_dir)
    model.save_pretrained(assets)
    tokenizer.save_pretrained(assets)
    card = model_card(args, texts, rows, loss)
    (assets / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
