"""Texts with labels, from files, folders and the hub, and batches made of them.

    open_source -> Source          where rows come from, and which splits there are
    load_rows   -> TextData        texts, labels, names of the classes, other columns
    choose_rows -> ChosenRows      the training and validation rows that settings describe
    make_loader -> DataLoader      tokenised, padded batches with `labels`
"""

from posthoc_bhpeft.data.choose import ChosenRows, RowSettings, choose_rows, read_rows
from posthoc_bhpeft.data.loader import EncodedRows, LengthOrder, encode, make_loader
from posthoc_bhpeft.data.read import load_rows
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.data.sources import Source, open_source

__all__ = [
    "ChosenRows",
    "EncodedRows",
    "LengthOrder",
    "RowSettings",
    "Source",
    "TextData",
    "choose_rows",
    "encode",
    "load_rows",
    "make_loader",
    "open_source",
    "read_rows",
]
