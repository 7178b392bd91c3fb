"""Trainable tensors as `(p, q)` blocks, and their per-sample gradients."""

from posthoc_bhpeft.blocks.apart import CheckedTape
from posthoc_bhpeft.blocks.block import (
    Block,
    Kind,
    MatrixView,
    ModuleTap,
    Observation,
    Observed,
    Recognizer,
    Site,
    Tap,
)
from posthoc_bhpeft.blocks.discover import DEFAULT_RECOGNIZERS, discover
from posthoc_bhpeft.blocks.hidden import check_adapters_apart
from posthoc_bhpeft.blocks.products import Product, find_products, with_products
from posthoc_bhpeft.blocks.tape import Engine, See, Tape, observing

__all__ = [
    "DEFAULT_RECOGNIZERS",
    "Block",
    "CheckedTape",
    "Engine",
    "Kind",
    "MatrixView",
    "ModuleTap",
    "Observation",
    "Observed",
    "Product",
    "Recognizer",
    "See",
    "Site",
    "Tap",
    "Tape",
    "check_adapters_apart",
    "discover",
    "find_products",
    "observing",
    "with_products",
]
