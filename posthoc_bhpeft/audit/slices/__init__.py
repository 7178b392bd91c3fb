"""Groups of rows: which are badly served, which badly calibrated."""

from posthoc_bhpeft.audit.slices.measured import (
    LENGTH,
    PREDICTED,
    TRUE,
    Slice,
    goes_with_label,
    slices,
)
from posthoc_bhpeft.audit.slices.significance import Correction

__all__ = ["LENGTH", "PREDICTED", "TRUE", "Correction", "Slice", "goes_with_label", "slices"]
