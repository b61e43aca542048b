"""A tokenizer whose tokens can be worked out by hand."""


class Letters:
    """One token a letter: a = 1, b = 2, ..., end of text = 0."""

    eos_token_id = 0

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) - 96 for c in text] for text in texts]}
