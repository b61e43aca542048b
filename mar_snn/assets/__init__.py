"""The tiny dense teacher that the examples use; its model card is beside it."""

from pathlib import Path

__all__ = ["TINY_LLAMBA"]

#: Folder of the tiny Llamba and its tokenizer, for `from_pretrained`.
TINY_LLAMBA = Path(__file__).parent / "tiny_llamba"
