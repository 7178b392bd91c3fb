"""Tokenised rows and the batches made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posthoc_bhpeft.predictive import Prediction

FEWEST = 4
"""Tokens of a text at least."""

MAX_LENGTH = 128
"""Tokens a text is cut at, where nobody says."""


@dataclass(frozen=True)
class EncodedRows(Dataset[dict[str, Any]]):
    """N tokenised rows: `features[n]` holds token ids, mask and, where known, `labels`.

    Attributes:
        features: one a row.
        rows: the texts they were made of.
        places: of rows of words, the position at which each word begins; None for a word that was
            cut off.
        token_labels: whether labels stand at tokens.
        decoder_start: the token that the decoder of an encoder-decoder begins with.
    """

    features: tuple[dict[str, Any], ...]
    rows: TextData | None = None
    places: tuple[tuple[int | None, ...], ...] | None = None
    token_labels: bool = False
    decoder_start: int | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every row; of its longest text where it has several."""
        return tuple(text_length(row["input_ids"]) for row in self.features)


def text_length(ids: Sequence[Any]) -> int:
    """Tokens of a text, or of the longest of several."""
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


def in_row_order(loader: Any, prediction: Prediction) -> Prediction:
    """A prediction for a loader brought back to the order of the rows, whatever `by_length` did."""
    order = getattr(loader, "sampler", None)
    return order.restore_prediction(prediction) if isinstance(order, LengthOrder) else prediction


class LengthOrder(Sampler[int]):
    """Visits rows from long to short, so batches need little padding; `restore` undoes it."""

    def __init__(self, lengths: Sequence[int]) -> None:
        # Longest first: the batch that needs most memory fails at once or not at all.
        self.order = tuple(sorted(range(len(lengths)), key=lambda row: -lengths[row]))

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def restore(self, values: Tensor) -> Tensor:
        """Results of shape (N, ...) in visiting order, brought back to the order of the rows."""
        restored = torch.empty_like(values)
        restored[torch.tensor(self.order, device=values.device)] = values
        return restored

    def restore_prediction(self, prediction: Prediction) -> Prediction:
        """A `Prediction` in visiting order, brought back to the order of the rows."""
        columns: dict[str, Any] = {
            name: None if column is None else self.restore(column)
            for name, column in prediction.columns().items()
        }
        return replace(prediction, **columns)


def encode(
    data: TextData, tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> EncodedRows:
    """Tokenise every row, cut at `max_length` tokens.

    Raises:
        DataError: there are no rows, they are lists of words, or `max_length` leaves no room for
            text.
    """
    if len(data) == 0:
        raise DataError("There are no rows to tokenise.")
    if data.words is not None:
        raise DataError("These rows are lists of words: encode_words(rows, tokenizer) reads them.")
    if data.written:
        raise DataError(
            "These rows have texts to write: encode_responses(rows, tokenizer) reads them for a "
            "causal language model, encode_translations(rows, tokenizer) for an encoder-decoder."
        )
    check_length(max_length)
    pairs = None if data.text_pairs is None else list(data.text_pairs)
    encoded = tokenizer(list(data.texts), pairs, truncation=True, max_length=max_length)
    rows = [{key: encoded[key][n] for key in encoded} for n in range(len(data))]
    if data.labels is not None:
        for row, label in zip(rows, data.labels, strict=True):
            # Answers are targets of a binary cross-entropy, which takes no integers.
            row["labels"] = [float(one) for one in label] if data.multi_label else label
    return EncodedRows(tuple(rows), data)


def check_length(max_length: int) -> None:
    """Raise where so few tokens leave no room for a text.

    Raises:
        DataError: with how many are needed.
    """
    if max_length < FEWEST:
        raise DataError(f"max_length is {max_length}; at least {FEWEST} tokens are needed.")


def make_loader(
    data: TextData | EncodedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
    max_length: int = MAX_LENGTH,
    shuffle: bool = False,
    by_length: bool = False,
    generator: torch.Generator | None = None,
) -> DataLoader[dict[str, Any]]:
    """Batches as dicts of tensors, padded to their longest row, with `labels` where known.

    Args:
        data: rows, tokenised already or not.
        tokenizer: the tokenizer of the model.
        batch_size: rows a batch.
        max_length: tokens a row is cut at.
        shuffle: visit the rows in random order.
        by_length: visit long rows first; `loader.sampler.restore` brings results back in order.
        generator: for `shuffle`.

    Raises:
        DataError: `shuffle` and `by_length` are both asked for, or there are no rows.
    """
    if shuffle and by_length:
        raise DataError("shuffle and by_length are two different orders; choose one.")
    rows = data if isinstance(data, EncodedRows) else encode(data, tokenizer, max_length=max_length)
    return DataLoader(
        rows,
        batch_size=batch_size,
        shuffle=shuffle,
        sampler=LengthOrder(rows.lengths) if by_length else None,
        generator=generator,
        collate_fn=collator(tokenizer, rows),
    )


def collator(tokenizer: PreTrainedTokenizerBase, *parts: EncodedRows) -> Any:
    """What makes batches of these rows; with choices, as many in every batch as any row has."""
    from transformers import DataCollatorWithPadding

    if parts[0].token_labels:
        return partial(pad_labelled, tokenizer=tokenizer)
    if parts[0].decoder_start is not None:
        return partial(pad_pairs, tokenizer=tokenizer, start=parts[0].decoder_start)
    if not isinstance(parts[0][0]["input_ids"][0], list):
        return DataCollatorWithPadding(tokenizer)
    n_choices = max(len(row["input_ids"]) for rows in parts for row in rows.features)
    return partial(pad_choices, tokenizer=tokenizer, n_choices=n_choices)


def pad_choices(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, n_choices: int
) -> dict[str, Tensor]:
    """A batch `(N, K, T)` of rows with up to `K` choices; those missing have a mask of zeros."""
    names = [name for name in rows[0] if name != "labels"]
    flat = [
        {name: row[name][k] for name in names} for row in rows for k in range(len(row["input_ids"]))
    ]
    padded = tokenizer.pad(flat, padding=True, return_tensors="pt")
    counts = torch.tensor([len(row["input_ids"]) for row in rows])
    there = torch.arange(n_choices) < counts[:, None]
    batch = {}
    for name in names:
        values = padded[name]
        empty = tokenizer.pad_token_id if name == "input_ids" else 0
        whole = values.new_full((len(rows), n_choices, values.shape[1]), empty)
        whole[there] = values
        batch[name] = whole
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def pad_labelled(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """A batch `(N, T)` with a label for each token, padded at its end, so that places hold."""
    batch = pad_at_end(rows, tokenizer)
    if "labels" in rows[0]:
        batch["labels"] = equally_long(rows, batch["input_ids"].shape[1])
    return batch


def pad_pairs(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, start: int
) -> dict[str, Tensor]:
    """A batch of texts `(N, S)`, what the decoder reads and what it should write `(N, T)`."""
    batch = pad_at_end(rows, tokenizer)
    if "labels" in rows[0]:
        labels = equally_long(rows, max(len(row["labels"]) for row in rows))
        before = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, tokenizer.pad_token_id)
        batch["decoder_input_ids"] = torch.nn.functional.pad(before, (1, 0), value=start)
        batch["labels"] = labels
    return batch


def pad_at_end(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """A batch `(N, T)` without its labels, padded at its end whatever the tokenizer does."""
    bare = [{name: row[name] for name in row if name != "labels"} for row in rows]
    return dict(tokenizer.pad(bare, padding=True, padding_side="right", return_tensors="pt"))


def equally_long(rows: Sequence[dict[str, Any]], width: int) -> Tensor:
    """Labels `(N, T)` of tokens, -100 after the last of a row."""
    return torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows])
