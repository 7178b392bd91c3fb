"""Tokenised rows, kept: a stream looks at the same rows again after every round."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posthoc_bhpeft.data import EncodedRows, TextData, encode
from posthoc_bhpeft.data.rows import content_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some tens of MB of token ids.
_CAPACITY = 50_000

Features = tuple[dict[str, Any], ...]


class TokenCache:
    """Tokenises texts once, as long as they are used; the least recently used go first.

    Args:
        tokenizer: of the model.
        max_length: tokens a text is cut at.
        capacity: rows kept; what was asked for last is kept in any case.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, capacity: int = _CAPACITY
    ) -> None:
        self._tokenizer, self._max_length, self._capacity = tokenizer, max_length, capacity
        self._kept: OrderedDict[str, Features] = OrderedDict()

    def features(self, data: TextData) -> Features:
        """Token ids and mask of every row, without labels; not to be changed."""
        key = content_digest(data.texts, data.text_pairs, None)
        if key not in self._kept:
            bare = replace(data, labels=None)
            rows = encode(bare, self._tokenizer, max_length=self._max_length)
            self._kept[key] = rows.features
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._capacity:
            self._kept.popitem(last=False)
        return self._kept[key]

    def labelled(self, data: TextData, labels: tuple[int, ...]) -> EncodedRows:
        """The rows with these labels."""
        rows = zip(self.features(data), labels, strict=True)
        return EncodedRows(tuple({**row, "labels": label} for row, label in rows))
