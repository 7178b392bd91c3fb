"""How large a fit will be: bytes and passes before any pass, and what is cheaper."""

from posthoc_bhpeft.size.asking import check_memory, estimate
from posthoc_bhpeft.size.batch import BatchBytes
from posthoc_bhpeft.size.blocks import BlockBytes
from posthoc_bhpeft.size.estimate import Estimate, tables
from posthoc_bhpeft.size.passes import Data, Passes
from posthoc_bhpeft.size.shapes import shapes_of
from posthoc_bhpeft.size.table import Table, bytes_text
from posthoc_bhpeft.size.work import Work

__all__ = [
    "BatchBytes",
    "BlockBytes",
    "Data",
    "Estimate",
    "Passes",
    "Table",
    "Work",
    "bytes_text",
    "check_memory",
    "estimate",
    "shapes_of",
    "tables",
]
