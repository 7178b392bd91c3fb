"""`observing(model, blocks)`: per-sample gradients of every block, from forward hooks.

Only the outputs of tapped modules are differentiated by, so there are no weight gradients, no
backward pass below the lowest block, and `.grad` of the user's model stays as it was. Each gradient
is handed on while the backward pass goes by it and is gone after it, so that a fit takes the memory
of a training step, however many modules are tapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from posthoc_bhpeft.blocks.backward import Places
from posthoc_bhpeft.blocks.block import Block, ModuleTap, Observation, Site
from posthoc_bhpeft.blocks.layout import rows_are_second, rows_first, rows_seen_second
from posthoc_bhpeft.blocks.linear import observe_bias
from posthoc_bhpeft.errors import DeadBlockError, ModelError

See = Callable[[Block, Observation], None]
"""What is done with the observation of a block."""


class Tape(Protocol):
    """What one forward pass left behind."""

    def observe(
        self, outputs: Tensor, direction: Tensor, see: See, *, retain: bool = False
    ) -> None:
        """Observe the gradient of `sum_n outputs_n . direction_n` at every block.

        Args:
            outputs: `(N, C)`, from the forward pass inside the context.
            direction: `(N, C)`, one output direction a row.
            see: Called once with every block and its observation, in any order; the `gradient()` of
                an observation is `(N, p, q)`.
            retain: Keep the graph for another direction.
        """
        ...


class Engine(Protocol):
    """Makes tapes; `observing` is the default, `interop.backpack` has another."""

    def __call__(self, model: nn.Module, blocks: Sequence[Block]) -> AbstractContextManager[Tape]:
        """A context in which one forward pass after another is taped."""
        ...


Place = tuple[str, Site | None]
"""What is taped: the output of a module, by its path, or a tensor that it is given."""


@dataclass
class Calls:
    """The calls of one module in one forward pass: inputs, detached, and places in the graph.

    An edge and a shape stand for an output without keeping its numbers, which nobody needs once the
    forward pass is over.
    """

    inputs: list[Tensor] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)

    def add(self, given: Tensor, tapped: Tensor) -> None:
        """One more call."""
        self.inputs.append(given.detach())
        # Of what is tapped itself the gradient is read alone; inference tensors keep no count.
        counted = given is not tapped and not given.is_inference()
        self.versions.append(given._version if counted else None)
        self.edges.append(get_gradient_edge(tapped))
        self.shapes.append(tapped.shape)

    def check_unchanged(self, block: Block) -> None:
        """Raise if an input was changed in place since: it is kept without a copy."""
        for given, version in zip(self.inputs, self.versions, strict=True):
            if version is not None and given._version != version:
                raise ModelError(
                    f"What {block.module!r} read was changed in place after it ran (x += y, "
                    f"relu_), so the gradients a row of block {block.name!r} cannot be told. Have "
                    "the model make a new tensor (x = x + y), or leave the block out: freeze its "
                    "tensor with requires_grad_(False)."
                )


class Arrivals:
    """Gradients of one backward pass, kept until all calls of a place have theirs: they add up.

    Args:
        calls: Of a forward pass.
        show: What to do with the gradients at a place; `None` for calls that nothing depends on.
    """

    def __init__(
        self,
        calls: Mapping[Place, Calls],
        show: Callable[[Place, Sequence[Tensor | None]], None],
    ) -> None:
        self.show = show
        self.numbered = [(place, i) for place, of in calls.items() for i in range(len(of.edges))]
        self.left = Counter(place for place, _ in self.numbered)
        self.waiting: dict[Place, list[Tensor | None]] = {
            place: [None] * n_calls for place, n_calls in self.left.items()
        }

    def take(self, number: int, gradient: Tensor) -> None:
        """Take the gradient at one of the edges."""
        place, call = self.numbered[number]
        self.waiting[place][call] = widen(gradient)
        self.left[place] -= 1
        if not self.left[place]:
            self.show(place, self.waiting.pop(place))

    def show_rest(self) -> None:
        """Show places that have calls without a gradient; at least one must have one.

        Raises:
            DeadBlockError: If none has.
        """
        for place, gradients in self.waiting.items():
            if all(gradient is None for gradient in gradients):
                raise DeadBlockError(
                    f"The outputs of the model do not depend on {place[0]!r}, though it ran. It is "
                    "dead weight: freeze it with requires_grad_(False)."
                )
            self.show(place, gradients)


@dataclass
class HookTape:
    """The tape behind `observing`; holds the calls of the latest forward pass.

    Attributes:
        blocks: What is seen.
        modules: Of the model, by path.
        calls: Of the latest forward pass.
        places: Where its gradients are taken, once one was asked for.
        inner_rows: Rows that modules see, where they are more than those of the batch.
        second: Whether rows are the second axis at a place, once a batch has told.
        recording: Until gradients of the latest forward pass are asked for.
    """

    blocks: Sequence[Block]
    modules: Mapping[str, nn.Module]
    calls: dict[Place, Calls] = field(default_factory=dict)
    places: Places | None = None
    inner_rows: int | None = None
    second: dict[Place, bool] = field(default_factory=dict)
    recording: bool = True

    @cached_property
    def at(self) -> dict[Place, list[Block]]:
        """The blocks that are taped at a place, by place."""
        found: dict[Place, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(place_of(block), []).append(block)
        return found

    def start(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Forget the previous forward pass."""
        self.calls = {place: Calls() for place in self.at}
        self.places = None
        self.inner_rows = inner_rows(kwargs.get("input_ids"))
        self.recording = True

    def record(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook: keep a call of a tapped module."""
        # A checkpoint that is computed again during a backward pass has been taped before.
        if not self.recording:
            return
        check_differentiable(output, path, module)
        given = args[0] if args else next(iter(kwargs.values()), output)
        self.calls[path, None].add(given if isinstance(given, Tensor) else output, output)

    def record_given(
        self, path: str, site: Site, module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        """Forward pre-hook: keep a tensor that a tapped module is given."""
        if not self.recording:
            return
        given = site(args, kwargs)
        check_differentiable(given, path, module)
        self.calls[path, site].add(given, given)

    def observe(
        self, outputs: Tensor, direction: Tensor, see: See, *, retain: bool = False
    ) -> None:
        """See `Tape.observe`."""
        self.recording = False
        self.check_alive()
        if self.places is None:
            self.places = Places.of([edge for of in self.calls.values() for edge in of.edges])
            self.find_rows(self.places, outputs)
        arrivals = Arrivals(self.calls, partial(self.show, see, len(outputs)))
        self.places.hand_on(outputs, direction, arrivals.take, retain=retain)
        arrivals.show_rest()

    def find_rows(self, places: Places, outputs: Tensor) -> None:
        """Tell which axis rows are at every place, by a backward pass where sizes do not.

        Raises:
            ModelError: If rows are mixed at a place that sizes leave open.
        """
        n_rows, n_inner = len(outputs), self.inner_rows or len(outputs)
        for place, calls in self.calls.items():
            told = {rows_are_second(shape, n_inner) for shape in calls.shapes} - {None}
            if True in told or (told and place not in self.second):
                self.second[place] = True in told
        # One row may read the position of its own number, and then two rows tell.
        for row in dict.fromkeys((n_rows // 2, 0)):
            if open_places := {place for place in self.calls if place not in self.second}:
                self.probe(places, outputs, row, n_inner, open_places)

    def probe(
        self, places: Places, outputs: Tensor, row: int, n_inner: int, wanted: set[Place]
    ) -> None:
        """Look at the gradients of one row's outputs at some places."""
        direction = torch.zeros_like(outputs)
        direction[row, ..., 0] = 1

        def look(place: Place, gradients: Sequence[Tensor | None]) -> None:
            if place in wanted:
                found = {
                    rows_seen_second(one, row, len(outputs), n_inner)
                    for one in gradients
                    if one is not None
                } - {None}
                if found:
                    self.second[place] = True in found

        arrivals = Arrivals(self.calls, look)
        places.hand_on(outputs, direction, arrivals.take, retain=True)

    def show(
        self, see: See, n_rows: int, place: Place, cotangents: Sequence[Tensor | None]
    ) -> None:
        """Let every block of a place be seen, by the gradients of all its calls."""
        given, n_inner = self.calls[place].inputs, self.inner_rows or n_rows
        for block in self.at[place]:
            module = self.modules[block.module]
            if block.tap is not observe_bias:  # it reads no input
                self.calls[place].check_unchanged(block)
            seen = [
                observe_call(block, module, *self.turned(place, one, cotangent, n_inner), n_inner)
                for one, cotangent in zip(given, cotangents, strict=True)
                if cotangent is not None
            ]
            see(block, concatenate(seen).grouped(n_rows))

    def turned(
        self, place: Place, given: Tensor, cotangent: Tensor, n_rows: int
    ) -> tuple[Tensor, Tensor]:
        """A call's input and gradient with rows first, where sizes might be misread."""
        if cotangent.dim() != 3 or cotangent.shape[1] != n_rows:
            return given, cotangent
        second, axes = self.second.get(place, False), cotangent.shape[:2]
        given = rows_first(given, second, n_rows) if given.shape[:2] == axes else given
        return given, rows_first(cotangent, second, n_rows)

    def check_alive(self) -> None:
        """Raise if a tapped module was not called in the forward pass."""
        dead = [path for (path, _), calls in self.calls.items() if not calls.edges]
        if dead or not self.calls:
            raise DeadBlockError(
                f"{len(dead)} tapped module(s) took no part in the forward pass, first: "
                f"{dead[:1]}. An adapter that is not active, or a prefix that this attention never "
                "reads? Activate it (set_adapter), or freeze its tensors."
            )


@contextmanager
def observing(model: nn.Module, blocks: Sequence[Block]) -> Iterator[HookTape]:
    """Tape the forward passes of a model; hooks are removed on the way out.

    ```python
    with observing(model, blocks) as tape:
        logits = model(**batch).logits
        tape.observe(logits, direction, see)   # see(block, observation) for every block
    ```

    where `observation.gradient()` is `(N, p, q)`.

    Args:
        model: Unchanged, apart from hooks that are removed at the end.
        blocks: From `discover`.

    Yields:
        A tape of the latest forward pass.

    Raises:
        ModelError: If a block's module is not in the model, or under `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(
            "torch.inference_mode() is on, and gradients are needed. Leave it; torch.no_grad() is "
            "fine."
        )
    modules = dict(model.named_modules())
    tape = HookTape(blocks, modules)
    with ExitStack() as hooks, torch.enable_grad():
        start = model.register_forward_pre_hook(tape.start, with_kwargs=True)
        hooks.callback(start.remove)
        for path, site in tape.at:
            if path not in modules:
                raise ModelError(
                    f"The model has no module {path!r}: these are another model's blocks."
                )
            handle = (
                modules[path].register_forward_hook(partial(tape.record, path), with_kwargs=True)
                if site is None
                else modules[path].register_forward_pre_hook(
                    partial(tape.record_given, path, site), with_kwargs=True
                )
            )
            hooks.callback(handle.remove)
        yield tape


def place_of(block: Block) -> Place:
    """Where a block is taped."""
    return block.module, block.site


def check_differentiable(tensor: Any, path: str, module: nn.Module) -> None:
    """Raise if what is tapped has no place in the graph."""
    if not isinstance(tensor, Tensor) or not tensor.requires_grad:
        raise DeadBlockError(
            f"{path!r} ({type(module).__name__}) ran without a gradient. Leave "
            "torch.inference_mode() and torch.no_grad(), make sure its weights require a gradient, "
            "and have checkpoints that are computed again use_reentrant=False."
        )


def concatenate(observations: Sequence[Observation]) -> Observation:
    """Calls of one module (shared layers) side by side: their gradients add."""
    if len(observations) == 1:
        return observations[0]
    return Observation(
        torch.cat([seen.rows for seen in observations], 1),
        torch.cat([seen.columns for seen in observations], 1),
        all(seen.factored for seen in observations),
    )


def observe_call(
    block: Block, module: nn.Module, given: Tensor, cotangent: Tensor, n_rows: int
) -> Observation:
    """One call seen by a block's tap, its shapes checked against `(N, T, p)` and `(N, T, q)`."""
    if given.is_floating_point():
        given = given.to(cotangent)
    tap = block.tap
    try:
        if isinstance(tap, ModuleTap):
            with torch.no_grad():
                observation = tap.observe(module, given, cotangent, n_rows)
        else:
            observation = tap(given, cotangent, n_rows)
    except ModelError as error:  # it knows no names
        raise ModelError(f"Block {block.name!r}: {error}") from error
    got = (observation.rows.shape[-1], observation.columns.shape[-1])
    if got != block.shape:
        raise ModelError(
            f"Block {block.name!r} has shape {block.shape}, but its tap gave {got}: the module was "
            "called with an input its recognizer does not know."
        )
    return observation


def inner_rows(input_ids: Any) -> int | None:
    """Rows that the modules of a model see, where they are more than those of the batch.

    Multiple choice gives `(N, K, T)` token ids, which the model reads as `N K` texts. From sizes
    alone they could not be told from positions first.
    """
    folded = isinstance(input_ids, Tensor) and input_ids.dim() == 3
    return input_ids.shape[0] * input_ids.shape[1] if folded else None


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32, since factors are sums of many small squares."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
