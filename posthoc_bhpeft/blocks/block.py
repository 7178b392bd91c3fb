"""`Block`: a `(p, q)` matrix view of a trainable tensor, and how its gradient is observed.

Everything later (curvature, posterior, predictive) sees blocks and per-sample gradients
`G_n (p, q)`, never modules. A recogniser turns a module into blocks; see `discover`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.errors import ModelError


class Kind(str, Enum):
    """What a block is part of; priors and reports group by it."""

    LORA = "lora"
    ADAPTER = "adapter"
    PREFIX = "prefix"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True)
class Observation:
    """One backward pass seen at one block: `G_n = sum_t rows_nt columns_nt^T`.

    Attributes:
        rows: `(N, T, p)`; for a linear layer the gradient at its output.
        columns: `(N, T, q)`; for a linear layer its input.
        factored: Whether the two sides are the layer's own. An engine that knows only the gradient
            gives the identity as one side; K-FAC, which needs both, has no meaning there.
    """

    rows: Tensor
    columns: Tensor
    factored: bool = True

    @classmethod
    def of_gradient(cls, gradient: Tensor) -> Observation:
        """`G_n (N, p, q)` as `sum_t e_t (row t of G_n)^T`, or the other way round where `q < p`."""
        n_rows, p, q = gradient.shape
        unit = torch.eye(min(p, q), dtype=gradient.dtype, device=gradient.device)
        unit = unit.expand(n_rows, -1, -1)
        if p <= q:
            return cls(unit, gradient, factored=False)
        return cls(gradient.transpose(1, 2), unit, factored=False)

    @classmethod
    def of_vector(cls, rows: Tensor) -> Observation:
        """`G_n = sum_t rows_nt` of a vector, `(N, T, p)`: every column is a 1."""
        ones = torch.ones((), dtype=rows.dtype, device=rows.device)
        return cls(rows, ones.expand(*rows.shape[:2], 1))

    def gradient(self) -> Tensor:
        """Per-sample gradient of the block, `(N, p, q)`."""
        if self.rows.shape[-1] > self.columns.shape[-1]:
            # A third of the time on a CPU, measured: the larger side runs along the product's rows.
            return (self.columns.mT @ self.rows).mT
        return self.rows.mT @ self.columns

    def grouped(self, n_rows: int) -> Observation:
        """Texts of one row, `(N k, T, .)`, as more positions of it, `(N, k T, .)`: they add up."""
        if len(self.rows) == n_rows:
            return self
        rows = self.rows.reshape(n_rows, -1, self.rows.shape[-1])
        columns = self.columns.reshape(n_rows, -1, self.columns.shape[-1])
        return Observation(rows, columns, self.factored)


@dataclass(frozen=True)
class MatrixView:
    """Part of a tensor seen as a matrix: `tensor[index].permute(order).reshape(shape)`."""

    shape: tuple[int, int]
    index: tuple[int | slice, ...] = ()
    order: tuple[int, ...] = ()

    def read(self, tensor: Tensor) -> Tensor:
        """The `(p, q)` matrix inside `tensor`."""
        part = tensor[self.index]
        return (part.permute(self.order) if self.order else part).reshape(self.shape)

    def write(self, tensor: Tensor, matrix: Tensor) -> None:
        """Put a `(p, q)` matrix back where `read` took it from, in place."""
        part = tensor[self.index]
        if not self.order:
            part.copy_(matrix.reshape(part.shape))
            return
        permuted = part.permute(self.order)
        permuted.copy_(matrix.reshape(permuted.shape))


class Tap(Protocol):
    """How the call of a module is turned into an `Observation` of one block."""

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        """Observe one call.

        Args:
            module_input: First positional input of the module.
            cotangent: Gradient of the scalar at the module's output, shaped as that output.
            n_rows: `N`, the number of rows of the batch.
        """
        ...


class ModuleTap(ABC):
    """A tap that reads its module too: the weight behind a learnt scale, say.

    Blocks are plain data that outlive their model, so the module comes with the call.
    """

    @abstractmethod
    def observe(
        self, module: nn.Module, module_input: Tensor, cotangent: Tensor, n_rows: int
    ) -> Observation:
        """Observe one call; see `Tap`."""


class Site(Protocol):
    """A tensor that a module is given: where a gradient has a batch axis before the module runs.

    Sites are compared and hashed: make them frozen dataclasses.
    """

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The tensor among the arguments of a call."""
        ...


@dataclass(frozen=True)
class Block:
    """A matrix view of (part of) a trainable tensor.

    Attributes:
        name: Unique name: the parameter's, with a part in brackets where there are several.
        kind: What it is part of.
        parameter: Name in `model.named_parameters()`.
        module: Path of the module whose call is tapped.
        view: The matrix inside the parameter.
        tap: How a call of the module is observed.
        site: What the gradient is taken at, where it is not the module's output.
    """

    name: str
    kind: Kind
    parameter: str
    module: str
    view: MatrixView
    tap: Tap | ModuleTap
    site: Site | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(p, q)`."""
        return self.view.shape

    @property
    def size(self) -> int:
        """`P = p q`, the number of weights."""
        return self.shape[0] * self.shape[1]


class Observed(Protocol):
    """A matrix whose per-sample gradients are seen: a `Block`, or a `Product` of two."""

    @property
    def name(self) -> str:
        """Unique name."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """`(p, q)`."""
        ...

    @property
    def size(self) -> int:
        """`p q`."""
        ...


class Recognizer(Protocol):
    """Finds the blocks of one type of module: the extension point of `discover`."""

    def __call__(self, path: str, module: nn.Module) -> Iterable[Block]:
        """Blocks of trainable tensors at or below `module`; nothing where it is not its type."""
        ...


HEAD_NAMES = frozenset(
    {
        "classifier",
        "pre_classifier",
        "score",
        "classification_head",
        "qa_outputs",
        "lm_head",
        "head",
        "summary",
    }
)


#: Where a layer keeps its adapters by name, beside the `bhpeft_...` and `lora_...`.
CONTAINERS = frozenset({"ln_tuning_layers", "modules_to_save", "prompt_encoder"})


def kind_of(path: str) -> Kind:
    """The kind of a block, read from the names of the modules around it; not from an adapter's."""
    parts = without_adapters(path.split("."))
    if "modules_to_save" in parts:
        return Kind.HEAD
    if any("lora_" in part for part in parts):
        return Kind.LORA
    if any("adapter" in part for part in parts):
        return Kind.ADAPTER
    if any("prefix" in part or part == "prompt_encoder" for part in parts):
        return Kind.PREFIX
    return Kind.HEAD if HEAD_NAMES.intersection(parts) else Kind.OTHER


def without_adapters(parts: Sequence[str]) -> list[str]:
    """The parts of a path less what adapters are called: what follows a container of them."""
    kept: list[str] = []
    inside = False
    for part in parts:
        if not inside:
            kept.append(part)
        inside = not inside and (part in CONTAINERS or part.startswith(("bhpeft_", "lora_")))
    return kept


def block_at(path: str, inside: str, view: MatrixView, tap: Tap | ModuleTap) -> Block:
    """The block that a whole parameter is: the one named `inside` in the module at `path`.

    Its kind follows from the module and the container; what an adapter is called says nothing.
    """
    name = join(path, inside)
    return Block(name, kind_of(join(path, inside.partition(".")[0])), name, path, view, tap)


def join(path: str, name: str) -> str:
    """Dotted path of `name` below `path`, which is empty for the model itself."""
    return f"{path}.{name}" if path else name


def by_row(tensor: Tensor, n_rows: int) -> Tensor:
    """View `(N * k, ..., d)` as `(N, T, d)`.

    `k > 1` happens where a model flattens rows and positions (OPT's feed-forward), or rows and
    choices (multiple choice), with the row as the slowest index. Where positions come first, the
    tape has turned the tensor before; see `layout`.

    Raises:
        ModelError: If the first axis cannot be the rows.
    """
    if tensor.shape[0] % n_rows:
        raise ModelError(
            f"its module saw {tensor.shape[0]} leading rows for a batch of {n_rows}: it is called "
            "once for the whole batch, or mixes rows, so there is no gradient a row. Leave it out: "
            "freeze its tensors with requires_grad_(False), or train without it. In a DeBERTa with "
            "share_att_key these are query_proj and key_proj, which serve its relative positions "
            "too; value_proj and attention.output.dense can be trained."
        )
    return tensor.reshape(n_rows, -1, tensor.shape[-1])
