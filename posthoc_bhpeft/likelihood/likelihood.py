"""What the rest of the package asks of a likelihood."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Likelihood(Protocol):
    """What curvature, evidence and predictive need to know about the outputs of a model.

    A row is what the model is differentiated for: a text with one label, or with one a token.
    """

    @property
    def dispersion(self) -> float:
        """Factor by which `nll` and its Hessian are divided: the noise variance, or 1."""
        return 1.0

    @property
    def positions(self) -> bool:
        """Whether outputs are `(N, T, C)`, with a label at every position, rather than `(N, C)`."""
        return False

    def aligned(self, labels: Tensor) -> Tensor:
        """Labels in the order of the outputs that predict them."""
        return labels

    def check_labels(self, outputs: Tensor, labels: Tensor) -> None:
        """Raise `DataError` if labels `(N, ...)` do not fit outputs `(N, C)`."""
        ...

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood in nats of each row, `(N,)`."""
        ...

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of `nll` in the outputs, of their shape."""
        ...

    def rank(self, n_outputs: int) -> float:
        """Columns that a root needs; infinite where there are more the longer a row is."""
        ...

    def root(self, outputs: Tensor, labels: Tensor, *, reduced: bool) -> Tensor:
        """Directions `(K, N, ...)` with `sum_k v_k v_k^T` the Hessian of `nll` in the outputs.

        Args:
            outputs: Of the labelled rows.
            labels: Theirs.
            reduced: The fewest that do.
        """
        ...

    def signed_root(
        self, outputs: Tensor, labels: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        """`S eps` with random signs `eps`, `(samples, N, ...)`; `E[v v^T]` is the Hessian."""
        ...

    def contrasts(self, n_outputs: int) -> Tensor:
        """Orthonormal `(C, K)`: the output directions that change a prediction."""
        ...


class RowLikelihood(Likelihood, Protocol):
    """One row of outputs `(C,)` a row of data, and a root `(C, C)` small enough to be formed."""

    def hessian_root(self, outputs: Tensor) -> Tensor:
        """`S` of shape `(N, C, C)` with `S S^T` the Hessian of `nll` in the outputs."""
        ...

    def reduced_root(self, outputs: Tensor) -> Tensor:
        """A root with the fewest columns, `(N, C, K)` with `K <= C`; the same `S S^T`."""
        return self.hessian_root(outputs)

    def rank(self, n_outputs: int) -> float:
        return n_outputs

    def root(self, outputs: Tensor, labels: Tensor, *, reduced: bool) -> Tensor:
        root = self.reduced_root(outputs) if reduced else self.hessian_root(outputs)
        return root.permute(2, 0, 1)

    def signed_root(
        self, outputs: Tensor, labels: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        root = self.reduced_root(outputs)
        signs = random_signs(samples, len(outputs), root.shape[-1], generator).to(root)
        return torch.einsum("nck,snk->snc", root, signs)


def random_signs(
    samples: int, n_rows: int, n_columns: int, generator: torch.Generator | None
) -> Tensor:
    """Independent signs, 1 or -1, as 8-bit integers on the CPU, `(samples, n_rows, n_columns)`.

    Drawn there, so that a seed means the same on every device; and row by row, so that the same
    rows get the same signs in batches of any size.
    """
    shape = (n_rows, samples, n_columns)
    drawn = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
    return 2 * drawn.transpose(0, 1) - 1
