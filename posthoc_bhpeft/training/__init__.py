"""Training adapters, LoRA and prefixes on rows of text, the ordinary way."""

from posthoc_bhpeft.training.building import form_for
from posthoc_bhpeft.training.record import TrainingRecord
from posthoc_bhpeft.training.run import TrainingResult, train
from posthoc_bhpeft.training.settings import PeftKind, TrainingSettings

__all__ = [
    "PeftKind",
    "TrainingRecord",
    "TrainingResult",
    "TrainingSettings",
    "form_for",
    "train",
]
