"""Settings as JSON and back: each is a frozen dataclass, named by its class.

The classes that may appear are listed here, so that a file cannot name any other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

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


# Whose types hold data. An object of any other is code of the user's own, which can be passed again
# when loading, so its name is enough.
_OF_DATA = sys.stdlib_module_names | {"numpy", "torch"}


def encode(value: Any, name: str = "") -> Any:
    """A setting as JSON data: `{"type": "Linearized", "link": {"type": "Probit"}}`.

    Args:
        value: The setting. Numbers of numpy and tensors of one number become Python's.
        name: What it is called, for errors; by default its class.

    Returns:
        The JSON data; of an object of the user's own that is no dataclass, its class alone.

    Raises:
        CheckpointError: If it holds something that could not be read again, such as an array.
    """
    value = _as_python(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [encode(one, f"{name or 'setting'}[{n}]") for n, one in enumerate(value)]
    own = type(value).__name__
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: encode(getattr(value, f.name), f"{own}.{f.name}") for f in fields(value)}
        return {"type": own, **inside}
    if type(value).__module__.partition(".")[0] in _OF_DATA:
        raise CheckpointError(
            f"The setting {name or own} is {value!r} ({own}), which could not be read again. "
            "Settings hold None, numbers, words, tuples of these, and other settings: give one of "
            "those, such as 0.25, and save again."
        )
    return {"type": own}


def _as_python(value: Any) -> Any:
    """A number of numpy, or a tensor or an array of no dimension, as Python's own."""
    scalar = isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0
    return value.item() if scalar else value


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
