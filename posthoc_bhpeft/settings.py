"""Settings as JSON and back: each is a frozen dataclass, named by its class.

The classes that may appear are listed here, so that a file cannot name any other.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from posthoc_bhpeft.curvature import (
    KFAC,
    Auto,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    EmpiricalFisher,
    Exact,
    KroneckerGGN,
    RandomSigns,
)
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import (
    MAP,
    ClassPreserving,
    LaplaceBridge,
    Linearized,
    MonteCarlo,
    Probit,
    Sampled,
)

SETTINGS: tuple[type, ...] = (
    Auto,
    Bernoulli,
    Categorical,
    ClassPreserving,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    EmpiricalFisher,
    Exact,
    Gaussian,
    KFAC,
    KroneckerGGN,
    LaplaceBridge,
    Linearized,
    MAP,
    MonteCarlo,
    Probit,
    RandomSigns,
    Sampled,
)


def encode(value: Any) -> Any:
    """A setting as JSON data: `{"type": "Linearized", "link": {"type": "Probit"}}`."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    content = {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    return {"type": type(value).__name__, **content}


def decode(content: Any) -> Any:
    """The setting that `encode` wrote.

    Raises:
        CheckpointError: If it names a class or a field that this version does not have.
    """
    if not isinstance(content, dict):
        return content
    known = {setting.__name__: setting for setting in SETTINGS}
    arguments = {name: decode(item) for name, item in content.items() if name != "type"}
    name = content.get("type")
    if name not in known:
        raise CheckpointError(
            f"The saved setting {name!r} is not known to this version. Update posthoc-bhpeft, or "
            "pass the setting yourself."
        )
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"The saved setting {name!r} does not fit this version: {error}."
        ) from error
