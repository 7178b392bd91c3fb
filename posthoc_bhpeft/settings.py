"""Settings as JSON and back: each is a frozen dataclass, named by its class.

The classes that may appear are listed here, so that a file cannot name any other.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Placed,
    RandomSigns,
    Softened,
    Subsample,
)
from posthoc_bhpeft.errors import CheckpointError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Tokens
from posthoc_bhpeft.predictive import (
    MAP,
    LaplaceBridge,
    Linearized,
    LogOdds,
    MonteCarlo,
    Probit,
    Sampled,
    Tangent,
    Tempered,
)

SETTINGS: tuple[type, ...] = (
    Auto,
    Bernoulli,
    Categorical,
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
    LogOdds,
    MAP,
    MonteCarlo,
    Placed,
    Probit,
    RandomSigns,
    Sampled,
    Softened,
    Subsample,
    Tangent,
    Tempered,
    Tokens,
)


def encode(value: Any) -> Any:
    """A setting as JSON data: `{"type": "Linearized", "link": {"type": "Probit"}}`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    if not is_dataclass(value) or isinstance(value, type):
        return {"type": type(value).__name__}
    content = {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    return {"type": type(value).__name__, **content}


def decode(content: Any, *, strict: bool = True, more: Sequence[type] = ()) -> Any:
    """The setting that `encode` wrote.

    Args:
        content: JSON data.
        strict: Without it, what is not known comes back as the JSON data.
        more: Classes that may appear beside `SETTINGS`.

    Returns:
        The setting.

    Raises:
        CheckpointError: If it names a class or a field that this version does not have.
    """
    if isinstance(content, list):
        return tuple(decode(one, strict=strict, more=more) for one in content)
    if not isinstance(content, dict):
        return content
    known = {setting.__name__: setting for setting in (*SETTINGS, *more)}
    arguments = {
        n: decode(item, strict=strict, more=more) for n, item in content.items() if n != "type"
    }
    name = content.get("type")
    try:
        return known[name](**arguments)  # type: ignore[index]
    except (KeyError, TypeError) as error:
        if not strict:
            return content
        raise CheckpointError(
            f"The saved setting {name!r} is not one of this version of posthoc-bhpeft "
            f"({type(error).__name__}: {error}). If it is your own, pass it: "
            "from_pretrained(folder, predictive=...); else update the package."
        ) from error
