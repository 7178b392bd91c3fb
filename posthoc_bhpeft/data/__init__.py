"""Texts with labels, from files, folders and the hub, and batches made of them.

`open_source` looks where rows come from and which splits there are, `load_rows` reads texts,
labels and names of the classes, `choose_rows` finds the training and validation rows that settings
describe, and `make_loader` turns rows into tokenised, padded batches with `labels`.
"""

from posthoc_bhpeft.data.choose import ChosenRows, RowSettings, choose_rows, read_rows
from posthoc_bhpeft.data.loader import (
    EncodedRows,
    LengthOrder,
    encode,
    in_row_order,
    make_loader,
)
from posthoc_bhpeft.data.pieces import encode_words
from posthoc_bhpeft.data.prompts import answer_prompt, encode_choices, encode_prompts
from posthoc_bhpeft.data.read import load_rows
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.data.sources import Source, open_source
from posthoc_bhpeft.data.writing import encode_responses, encode_translations

__all__ = [
    "ChosenRows",
    "EncodedRows",
    "LengthOrder",
    "RowSettings",
    "Source",
    "TextData",
    "answer_prompt",
    "choose_rows",
    "encode",
    "encode_choices",
    "encode_prompts",
    "encode_responses",
    "encode_translations",
    "encode_words",
    "in_row_order",
    "load_rows",
    "make_loader",
    "open_source",
    "read_rows",
]
