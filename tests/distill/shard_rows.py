"""The rows that each process sees of a data set and of a stream, for test_data_streams.

    python shard_rows.py FOLDER

Two processes, started by torchrun's environment variables, with two workers each, write
FOLDER/RANK.json: all that is read, twice, as lists of the rows' first tokens.
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from mar_snn.distill.data import PackedStream, collate, pack
from tests.distill.letters import Letters

LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: Texts of three letters, each one a row of four tokens.
TEXTS = [a + b + "z" for a in LETTERS[:8] for b in LETTERS[:8]]


def seen(rows, **options) -> list[list[int]]:
    set_seed(5)
    args = TrainingArguments(
        output_dir="unused",
        max_steps=8,
        per_device_train_batch_size=4,
        dataloader_num_workers=2,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        accelerator_config=options,
    )
    trainer = Trainer(nn.Linear(1, 1), args, train_dataset=rows, data_collator=collate)
    batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    return torch.cat(batches)[:, :2].tolist()


def main(folder: str) -> None:
    texts = Dataset.from_dict({"text": TEXTS})
    stream = texts.to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=9)
    rows = PackedStream(stream, Letters(), 4, epochs=1)
    result = {
        "data set": [seen(pack(texts, Letters(), 4)) for _ in range(2)],
        "stream": [seen(rows) for _ in range(2)],
        "stream, read by both": [seen(rows, dispatch_batches=False) for _ in range(2)],
    }
    rank = os.environ["RANK"]
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    # a process that leaves first would abort the threads of the others
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
