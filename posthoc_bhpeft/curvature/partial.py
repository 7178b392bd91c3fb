"""`PartialFit`: what one process has summed so far, and the sum over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Observed, Product
from posthoc_bhpeft.curvature.estimator import Accumulator, Curvature, summed_by
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import CheckpointError

Part = tuple[str, str]
"""A block's name, and the name of one of its sums."""


@dataclass
class PartialFit:
    """Sums over the batches that a fit has seen.

    Attributes:
        sums: Curvature of each block and product by name.
        devices: Where each of them lies.
        log_likelihood: In nats.
        n_rows: Labelled rows.
        n_outputs: `C`; 0 before the first batch.
    """

    sums: Mapping[str, Accumulator]
    devices: Mapping[str, torch.device]
    log_likelihood: float = 0.0
    n_rows: int = 0
    n_outputs: int = 0

    @classmethod
    def empty(
        cls, model: nn.Module, estimator: Curvature, summed: Sequence[Observed]
    ) -> PartialFit:
        """Before the first batch."""
        parameters = dict(model.named_parameters())
        return cls(
            {one.name: estimator.accumulator(one) for one in summed},
            {one.name: parameters[parameter_of(one)].device for one in summed},
        )

    def tensors(self, purpose: str) -> dict[Part, Tensor]:
        """Every sum of every block; none before the first batch.

        Raises:
            ConfigError: If an estimator of the user's own does not tell its sums.
        """
        return {
            (name, part): tensor
            for name, total in self.sums.items()
            for part, tensor in summed_by(total, purpose).sums().items()
        }

    def restore(self, tensors: Mapping[Part, Tensor]) -> None:
        """Take these sums in place of those so far, each to its block's device.

        Raises:
            CheckpointError: If they are of other blocks or products than this fit's.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        # Before its first row a fit has no sums at all; later it has some of each.
        if tensors:
            self.check_names({name for name, _ in tensors})
        for (name, part), tensor in tensors.items():
            # Copied: inside a file or a message tensors are not aligned, and kernels then add up
            # in another order.
            parts.setdefault(name, {})[part] = tensor.to(self.devices[name], copy=True)
        for name, own in parts.items():
            summed_by(self.sums[name], "").restore(own)

    def check_names(self, names: Set[str]) -> None:
        """Raise unless there are sums of each block and product, and of nothing else.

        Raises:
            CheckpointError: Naming the first that is too many or missing.
        """
        other = sorted(names ^ self.sums.keys())
        if other:
            where = "of the sums" if other[0] in names else "of this fit"
            raise CheckpointError(
                f"These sums are of another fit: {len(other)} blocks or products differ, first "
                f"{other[0]!r} {where} alone. Fit the same blocks with the same products=, or "
                "start from the first row."
            )

    def over_all(self, processes: Processes) -> None:
        """Add up what all processes have summed; afterwards each has the same, the whole.

        Raises:
            ConfigError: If an estimator of the user's own does not tell its sums.
            ProcessError: If another process failed.
        """
        if processes.size == 1:
            return
        with processes.together():
            own = self.tensors("a fit by several processes")
        layouts = processes.gather({key: (t.shape, t.dtype) for key, t in own.items()})
        # A process without a row has no sums yet, and adds zeros.
        layout = next((one for one in layouts if one), {})
        filled = [
            own[key] if own else torch.zeros(shape, dtype=dtype, device=self.devices[key[0]])
            for key, (shape, dtype) in layout.items()
        ]
        self.restore(dict(zip(layout, processes.sum(filled), strict=True)))
        found = processes.gather((self.log_likelihood, self.n_rows, self.n_outputs))
        self.log_likelihood = sum(one[0] for one in found)
        self.n_rows = sum(one[1] for one in found)
        self.n_outputs = max(one[2] for one in found)


def parameter_of(observed: Observed) -> str:
    """A parameter on the device where a block, or the second factor of a product, lies."""
    block = observed.up if isinstance(observed, Product) else observed
    return block.parameter  # type: ignore[attr-defined, no-any-return]
