"""The text of a record: of a column, of messages, or of a prompt and its completion."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError

__all__ = ["PLAIN", "apply_chat_template", "read_messages", "text_of"]

Messages = list[dict[str, str]]

#: A chat template for tokenizers without one: "User: …", an empty line, "Assistant: …".
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{{ '\n\n' if not loop.last }}{% endfor %}"
)
#: What a file of UTF-8 may begin with, and a text that was read from one: no character.
MARK = "\ufeff"
#: ShareGPT's names of who speaks; others are kept.
_ROLES = {"human": "user", "gpt": "assistant"}


def text_of(
    record: Mapping[str, Any],
    column: str,
    completion_column: str | None = None,
    chat: Callable[[Messages], str] | None = None,
) -> str:
    """The text that a record holds.

    Args:
        record: values by the name of their column.
        column: holds a text, or messages (see `read_messages`).
        completion_column: if given, `column` is a user's prompt and this the answer.
        chat: writes messages as a text.

    Raises:
        ValueError: for a missing, empty or wrongly typed column, text that is not
            Unicode, and messages where there is no `chat`.
    """
    value = _column(record, column)
    if completion_column is not None:
        answer = _column(record, completion_column)
        value = [
            {"role": "user", "content": value},
            {"role": "assistant", "content": answer},
        ]
    if isinstance(value, list):
        if chat is None:
            raise ValueError(
                f"column {column!r} holds messages: give a chat template (chat=...)"
            )
        value = chat(read_messages(value))
    if not isinstance(value, str):
        raise ValueError(
            f"column {column!r} must hold a text or messages, got "
            f"{type(value).__name__}"
        )
    if not value.strip().strip(MARK):
        raise ValueError(f"column {column!r} is empty")
    value.encode()  # a lone surrogate, which JSON can hold, is no character
    return value.removeprefix(MARK)


def _column(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise ValueError(
            f"has no column {column!r}: it has {', '.join(record) or 'none'}; name one "
            "with --text_column"
        )
    return record[column]


def read_messages(turns: list[Any]) -> Messages:
    """Turns of role and content (OpenAI) or from and value (ShareGPT), as the former.

    Raises:
        ValueError: where there is no turn, or one has another layout.
    """
    messages = []
    for found in turns:
        turn = found if isinstance(found, dict) else {}
        names = ("from", "value") if "from" in turn else ("role", "content")
        if not all(isinstance(turn.get(name), str) for name in names):
            raise ValueError(
                "a message must have the texts role and content, or from and value, "
                f"got {str(found)[:80]}"
            )
        role, content = (turn[name] for name in names)
        content = content.removeprefix(MARK)
        messages.append({"role": _ROLES.get(role, role), "content": content})
    if not messages:
        raise ValueError("there are no messages")
    return messages


def apply_chat_template(
    messages: Messages, tokenizer: Any, template: str | None = None
) -> str:
    """Messages as the text that the tokenizer's chat template makes of them.

    Args:
        messages: see `read_messages`.
        tokenizer: of transformers.
        template: a Jinja template instead of the tokenizer's, or "plain" for `PLAIN`.

    Raises:
        ValueError: where neither has a template, or it refuses the messages.
    """
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "there are messages, and the tokenizer has no chat template: give one "
            "(--chat_template), or 'plain' for lines of role and content"
        )
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            chat_template=PLAIN if template == "plain" else template,
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error
