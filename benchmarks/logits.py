"""The model as laplace-torch wants it, for the benchmarks that measure both."""

from __future__ import annotations

from torch import Tensor, nn

Batch = dict[str, Tensor]


class Logits(nn.Module):
    """What laplace-torch wants to call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch that may hold labels."""
        logits: Tensor = self.model(batch["input_ids"], batch["attention_mask"]).logits
        return logits
