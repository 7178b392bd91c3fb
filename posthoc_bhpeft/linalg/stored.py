"""Operators as named tensors and back, for files: `tensors()`, `structure_of`, `restored`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.linalg.operators import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
    factor_of,
)
from posthoc_bhpeft.linalg.sums import OperatorSum

STRUCTURES = (KroneckerOperator, DiagonalOperator, DenseOperator)


def structure_of(operator: BlockOperator) -> str:
    """Class names of an operator's terms, joined by `+`."""
    terms = operator.terms if isinstance(operator, OperatorSum) else (operator,)
    return "+".join(type(term).__name__ for term in terms)


def check_structure(name: str, operator: BlockOperator) -> None:
    """Raise if an operator is of a class that `restored` could not make again.

    Raises:
        CheckpointError: Naming the block, the class, and those supported.
    """
    terms = operator.terms if isinstance(operator, OperatorSum) else (operator,)
    for term in terms:
        if not isinstance(term, STRUCTURES):
            known = ", ".join(structure.__name__ for structure in STRUCTURES)
            raise CheckpointError(
                f"The curvature of block {name!r} is a {type(term).__name__}, which has no "
                f"file format. Supported: {known}, and sums of them."
            )


def restored(name: str, structure: str, tensors: Mapping[str, Tensor], rows: int) -> BlockOperator:
    """The operator that `structure_of` and `tensors()` tell of.

    Args:
        name: Of the block, for errors.
        structure: Class names joined by `+`.
        tensors: By field name; of a sum, after the number of the term and a dot.
        rows: `p` of the block.

    Raises:
        CheckpointError: If the two do not fit, or name a class that this version does not have.
        KeyError: If a tensor is missing.
    """
    structures = structure.split("+")
    terms = {part.split(".")[0] for part in tensors if "." in part}
    if len(structures) == 1 and not terms:
        return restored_term(name, structure, tensors, rows)
    if terms != {str(index) for index in range(len(structures))}:
        raise CheckpointError(
            f"Block {name!r} has {len(structures)} curvature terms by its description and "
            f"{len(terms)} by its tensors: one of the two files was edited. Copy both again, or "
            "fit and save again."
        )
    parts: list[dict[str, Tensor]] = [{} for _ in structures]
    for part, tensor in tensors.items():
        index, _, field = part.partition(".")
        parts[int(index)][field] = tensor
    named = zip(structures, parts, strict=True)
    return OperatorSum(tuple(restored_term(name, one, part, rows) for one, part in named))


def restored_term(
    name: str, structure: str, part: Mapping[str, Tensor], rows: int
) -> BlockOperator:
    """One operator of a known class from its tensors."""
    if structure == KroneckerOperator.__name__:
        return KroneckerOperator(factor_of("left", part), factor_of("right", part))
    if structure == DiagonalOperator.__name__:
        return DiagonalOperator(part["diagonal"])
    if structure == DenseOperator.__name__:
        return DenseOperator(part["matrix"], rows)
    raise CheckpointError(
        f"Block {name!r} has the structure {structure!r}, unknown to this version of "
        "posthoc-bhpeft. Update the package."
    )
