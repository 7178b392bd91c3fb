"""Words tokenised, a piece or several each.

The label of a word stands at its first piece; further pieces, special tokens and padding have -100,
as everywhere in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data.loader import MAX_LENGTH, EncodedRows, check_length
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_words(
    data: TextData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> EncodedRows:
    """Tokenise words, cut at `max_length` tokens; `places` says where each word begins.

    Args:
        data: From `load_rows(..., words=True)`.
        tokenizer: Of the model.
        max_length: Tokens a row has at most.

    Raises:
        DataError: If the rows have no words, or `max_length` leaves no room for them.
        ConfigError: If the tokenizer does not tell which word a piece is of.
    """
    if data.words is None:
        raise DataError(
            f"{data.source or 'These rows'} are no lists of words. Read them with "
            "load_rows(source, split, words=True)."
        )
    check_length(max_length)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} does not tell which word a piece is of. Use a model with "
            "a fast tokenizer (tokenizer.json)."
        )
    gap = gap_of(tokenizer)
    spaced = [[own[0], *(gap + word for word in own[1:])] for own in data.words]
    encoded = tokenizer(spaced, is_split_into_words=True, truncation=True, max_length=max_length)
    places = [first_pieces(encoded.word_ids(n), len(own)) for n, own in enumerate(data.words)]
    rows = [{key: encoded[key][n] for key in encoded} for n in range(len(data))]
    if data.labels is not None:
        for row, own, labels in zip(rows, places, data.labels, strict=True):
            row["labels"] = at_first_pieces(labels, own, len(row["input_ids"]))
    return EncodedRows(tuple(rows), data, tuple(places), token_labels=True)


def gap_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What belongs before every word but the first: a space, where pieces carry it."""
    plain = tokenizer("a b")["input_ids"]
    alone, spaced = (
        tokenizer(["a", gap + "b"], is_split_into_words=True)["input_ids"] for gap in ("", " ")
    )
    return " " if plain == spaced != alone else ""


def first_pieces(words: Sequence[int | None], count: int) -> tuple[int | None, ...]:
    """Where each word begins, `None` for one that was cut off or has no piece.

    Args:
        words: Which word each piece is of; `None` for special tokens.
        count: Words there are.
    """
    places: dict[int, int] = {}
    for place, word in enumerate(words):
        if word is not None:
            places.setdefault(word, place)
    return tuple(places.get(word) for word in range(count))


def at_first_pieces(labels: Sequence[int], places: Sequence[int | None], length: int) -> list[int]:
    """Labels of words as labels of pieces, -100 everywhere else."""
    found = [IGNORED] * length
    for label, place in zip(labels, places, strict=True):
        if place is not None:
            found[place] = label
    return found
