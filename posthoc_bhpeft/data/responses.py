"""Prompts, each with the text that a model should write, as columns of `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posthoc_bhpeft.data.answers import CHOICES_COLUMN
from posthoc_bhpeft.data.columns import (
    LABEL_COLUMNS,
    first_of,
    listed,
    missing_labels,
    named_column,
    values_of,
)
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import DataError

PROMPT_COLUMNS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "source",
    "input",
    "document",
    "article",
    "text",
)
CERTAIN = ("completion", "response")
"""Names that nothing but a text to write has."""

RESPONSE_COLUMNS = (*CERTAIN, "output", "answer", "target", "summary")
CHATS = ("messages", "conversations", "conversation")


def tells_responses(columns: Sequence[str], label: str | None) -> bool:
    """Whether rows for a language model are texts to write, rather than choices or classes.

    Args:
        columns: Of the data.
        label: The label column, where it is named.
    """
    if label is not None or CHOICES_COLUMN in columns:
        return False
    classes = first_of(LABEL_COLUMNS, columns) is not None
    telling = CERTAIN if classes else (*RESPONSE_COLUMNS, *CHATS)
    return first_of(telling, columns) is not None


def check_only_responses(where: str, *, label: str | None, pair: str | None) -> None:
    """Raise where columns are named that texts to write do not have.

    Raises:
        DataError: With those that they have.
    """
    if label or pair:
        raise DataError(
            f"{where}: the prompt is one column, --text-column, and what should be written "
            "another, --response-column. Leave out --label-column and --text-pair-column."
        )


def read_responses(
    rows: Any,
    *,
    prompt: str | None,
    response: str | None,
    ignore_labels: bool,
    drop: bool,
    where: str,
) -> TextData:
    """Prompts as texts, and responses, where they are known, as labels.

    Args:
        rows: A `datasets.Dataset`.
        prompt: The column with the prompts; `None` finds it.
        response: The column with what should be written; `None` finds it.
        ignore_labels: Read no responses.
        drop: Leave out rows without a response instead of raising.
        where: The rows came from, for errors.

    Raises:
        DataError: If a column cannot be told, or holds something else than texts.
    """
    columns = rows.column_names
    prompt = named_column(rows, prompt, where) or find_prompt(columns, where)
    others = [name for name in RESPONSE_COLUMNS if name != prompt]
    response = named_column(rows, response, where) or first_of(others, columns)
    written = None if response is None or ignore_labels else rows[response][:]
    kept = list(range(len(rows)))
    if written is not None and any(written):
        kept = [row for row in kept if written[row]]
        if len(kept) < len(written) and not drop:
            raise DataError(missing_labels(written, kept, str(response), where))
    else:
        written = None
    used = {prompt} if written is None else {prompt, response}
    said = "no responses" if written is None else f"responses from {response!r}"
    return TextData(
        texts=checked_texts(rows, prompt, kept, where),
        labels=None if written is None else checked_texts(rows, str(response), kept, where),
        columns={name: values_of(rows, name, kept) for name in columns if name not in used},
        indices=tuple(kept),
        notes=(f"prompts from {prompt!r}, {said}",),
    )


def find_prompt(columns: Sequence[str], where: str) -> str:
    """The column with the prompts.

    Raises:
        DataError: If it cannot be told how a model was asked.
    """
    if chats := first_of(CHATS, columns):
        raise DataError(
            f"{where}: the column {chats!r} has chats, and how the model was shown them is not "
            "known. Write the prompt of each row into a column, as tokenizer.apply_chat_template("
            "messages, tokenize=False, add_generation_prompt=True) makes it, and the answer into "
            "another; name them with --text-column and --response-column."
        )
    found = first_of(PROMPT_COLUMNS, columns)
    if found is not None and found.lower() == "instruction" and first_of(("input",), columns):
        raise DataError(
            f"{where}: the prompt is made of 'instruction' and 'input', in a way that only the "
            "training of the model knows. Write it into a column of its own and name that with "
            "--text-column."
        )
    if found is None:
        raise DataError(
            f"{where}: cannot tell which column holds the prompts. The columns are: "
            f"{listed(columns)}. Name it with --text-column (text_column=)."
        )
    return found


def checked_texts(rows: Any, column: str, kept: Sequence[int], where: str) -> tuple[str, ...]:
    """Texts that are not empty.

    Raises:
        DataError: Naming the first row that has none.
    """
    values = values_of(rows, column, kept)
    for row, value in zip(kept, values, strict=True):
        if not (isinstance(value, str) and value.strip()):
            raise DataError(
                f"{where}, column {column!r}: row {row} has {value!r} for a text. Write one there, "
                "or take the row out of the file."
            )
    return values
