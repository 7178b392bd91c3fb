"""Prompts and responses tokenised: one text for a decoder, two for an encoder-decoder."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data.loader import EncodedRows, check_length
from posthoc_bhpeft.data.prompts import PROMPT_LENGTH, last_of, marked, prompt_row
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_responses(
    data: TextData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = PROMPT_LENGTH
) -> EncodedRows:
    """Each prompt and its response in one text, for `Tokens(shift=True)`; only responses count.

    They are joined as they stand, so a space or a line between them belongs to one of them. The
    mark of a beginning comes before them, that of an end after them. Where a text is too long, its
    prompt loses its beginning, down to half of the length, and its response the end.

    Args:
        data: From `load_rows(..., responses=True)`; without responses, prompts alone.
        tokenizer: Of the model.
        max_length: Tokens a row has at most.

    Raises:
        DataError: If the labels are no texts, or `max_length` leaves no room for them.
    """
    check_length(max_length)
    rows = [
        prompt_row(prompt, tokenizer, max_length)
        if response is None
        else response_row(prompt, response, tokenizer, max_length)
        for prompt, response in zip(data.texts, responses_of(data), strict=True)
    ]
    return EncodedRows(tuple(rows), data, token_labels=data.written)


def response_row(
    prompt: str, response: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    """One row of so many tokens at most, the response labelled."""
    # Together, since a token may reach from one into the other; it counts as the response's.
    start, both = marked(prompt + response, tokenizer)
    pairs = zip(marked(prompt, tokenizer)[1], both, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    written = both[shared:] + end
    kept = last_of(start, both[:shared], max(max_length - len(written), max_length // 2))
    written = written[: max_length - len(kept)]
    ids = kept + written
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORED] * len(kept) + written,
    }


def encode_translations(
    data: TextData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = PROMPT_LENGTH,
    decoder_start: int | None = None,
) -> EncodedRows:
    """Each text, and the one to be made of it, for an encoder-decoder and `Tokens()`.

    Args:
        data: From `load_rows(..., responses=True)`; without responses, texts alone.
        tokenizer: Of the model.
        max_length: Tokens that each of both is cut at.
        decoder_start: The token that the decoder begins with, `config.decoder_start_token_id`;
            batches need it.

    Raises:
        DataError: If the labels are no texts, or `max_length` leaves no room for them.
    """
    check_length(max_length)
    encoded = tokenizer(list(data.texts), truncation=True, max_length=max_length)
    rows: list[dict[str, Any]] = [
        {key: encoded[key][n] for key in ("input_ids", "attention_mask")} for n in range(len(data))
    ]
    known = [one for one in responses_of(data) if one is not None]
    if known:
        cut = {"truncation": True, "max_length": max_length}
        targets = tokenizer(text_target=known, **cut)["input_ids"]
        for row, target in zip(rows, targets, strict=True):
            row["labels"] = target
    return EncodedRows(tuple(rows), data, decoder_start=decoder_start)


def responses_of(data: TextData) -> list[str | None]:
    """What should be written after every prompt, `None` where that is not known.

    Raises:
        DataError: If there are no rows, or labels are no texts.
    """
    if len(data) == 0:
        raise DataError("There are no rows to tokenise.")
    if data.labels is None:
        return [None] * len(data)
    if not data.written:
        raise DataError(
            f"{data.source or 'These rows'} have labels that are no texts to write. Read them with "
            "load_rows(source, split, responses=True)."
        )
    return list(data.labels)
