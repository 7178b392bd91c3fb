"""Questions with choices, tokenised: one prompt a question, or one text a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posthoc_bhpeft.data.answers import letters
from posthoc_bhpeft.data.loader import MAX_LENGTH, EncodedRows, check_length
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.tasks.absent import COUNT_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_END = "Answer:"
PROMPT_LENGTH = 512
"""Tokens a prompt has at most, where nobody says."""


def answer_prompt(question: str, choices: Sequence[str], passage: str | None = None) -> str:
    """A question with lettered choices, ending where the letter is to follow.

    ```text
    Question: Which one is a metal?
    A. oxygen
    B. iron
    Answer:
    ```

    Args:
        question: Such as "Which one is a metal?".
        choices: Texts, in the order of the letters.
        passage: Put before the question.
    """
    lines = [] if passage is None else [passage]
    lines.append(f"Question: {question}")
    named = zip(letters(len(choices)), choices, strict=True)
    return "\n".join([*lines, *(f"{letter}. {text}" for letter, text in named), PROMPT_END])


def encode_prompts(
    data: TextData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = PROMPT_LENGTH
) -> EncodedRows:
    """One prompt a row, for `AnswerTokens`; `n_choices` says how many choices each has.

    A prompt that is too long loses its beginning, where a passage stands, and keeps its choices.

    Args:
        data: From `load_rows(..., choices=True)`.
        tokenizer: Of the model.
        max_length: Tokens a prompt has at most.

    Raises:
        DataError: the rows have no choices, or `max_length` leaves no room for them.
    """
    choices = choices_of(data)
    check_length(max_length)
    passages = data.text_pairs or [None] * len(data)
    prompts = [answer_prompt(*one) for one in zip(data.texts, choices, passages, strict=True)]
    rows = [prompt_row(prompt, tokenizer, max_length) for prompt in prompts]
    for row, own in zip(rows, choices, strict=True):
        row[COUNT_NAME] = len(own)
    return EncodedRows(tuple(with_labels(rows, data)), data)


def prompt_row(prompt: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """A prompt's tokens, with the mark of a beginning but none of an end: an answer follows."""
    kept = last_of(*marked(prompt, tokenizer), max_length)
    return {"input_ids": kept, "attention_mask": [1] * len(kept)}


def marked(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The mark of a beginning, where the tokenizer puts one, and the tokens of a text."""
    first = list(tokenizer(text)["input_ids"])[:1]
    start = first if first == [tokenizer.bos_token_id] else []
    return start, list(tokenizer(text, add_special_tokens=False)["input_ids"])


def last_of(start: list[int], ids: list[int], length: int) -> list[int]:
    """So many tokens at most: the mark of a beginning, and the last of a text."""
    return start + ids[-(length - len(start)) :]


def encode_choices(
    data: TextData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> EncodedRows:
    """One text pair a choice, question first, for `MultipleChoice` and `PairScores`.

    Args:
        data: From `load_rows(..., choices=True)`.
        tokenizer: Of the model.
        max_length: Tokens a pair is cut at; the question, with its passage before it, is cut. Where
            a choice alone leaves no room for it, the longer of both is, so the choice too.

    Raises:
        DataError: the rows have no choices, or `max_length` leaves no room for them.
    """
    check_length(max_length)
    rows = []
    passages = data.text_pairs or [""] * len(data)
    for text, own, passage in zip(data.texts, choices_of(data), passages, strict=True):
        question = f"{passage} {text}".strip()
        encoded = tokenizer(
            [question] * len(own),
            list(own),
            truncation=what_is_cut(own, tokenizer, max_length),
            max_length=max_length,
        )
        rows.append({name: encoded[name] for name in encoded})
    return EncodedRows(tuple(with_labels(rows, data)), data)


def what_is_cut(choices: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Of pairs of a question and a choice the question alone, if some of it can stay."""
    ids = tokenizer(list(choices), add_special_tokens=False, verbose=False)["input_ids"]
    longest = max(map(len, ids)) + tokenizer.num_special_tokens_to_add(pair=True)
    return "only_first" if longest < max_length else "longest_first"


def choices_of(data: TextData) -> tuple[tuple[str, ...], ...]:
    """The choices of every row.

    Raises:
        DataError: there are none.
    """
    if data.choices is None:
        raise DataError(
            f"{data.source or 'These rows'} have no choices. Read them with "
            "load_rows(source, split, choices=True)."
        )
    return data.choices


def with_labels(rows: list[dict[str, Any]], data: TextData) -> list[dict[str, Any]]:
    """Rows with their labels, where these are known."""
    if data.labels is not None:
        for row, label in zip(rows, data.labels, strict=True):
            row["labels"] = label
    return rows
