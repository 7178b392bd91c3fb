"""`observing(model, blocks)`: per-sample gradients of every block, from forward hooks.

Only the outputs of tapped modules are differentiated by, so there are no weight gradients, no
backward pass below the lowest block, and `.grad` of the user's model stays as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from posthoc_bhpeft.blocks.block import Block, Observation
from posthoc_bhpeft.errors import DeadBlockError, ModelError


class Tape(Protocol):
    """What one forward pass left behind."""

    def observe(
        self, outputs: Tensor, direction: Tensor, *, retain: bool = False
    ) -> Iterator[tuple[Block, Observation]]:
        """Observe the gradient of `sum_n outputs_n . direction_n` at every block.

        Args:
            outputs: `(N, C)`, from the forward pass inside the context.
            direction: `(N, C)`, one output direction a row.
            retain: Keep the graph for another direction.

        Yields:
            Each block with its observation; its `gradient()` is `(N, p, q)`.
        """
        ...


class Engine(Protocol):
    """Makes tapes; `observing` is the default, `interop.backpack` has another."""

    def __call__(self, model: nn.Module, blocks: Sequence[Block]) -> AbstractContextManager[Tape]:
        """A context in which one forward pass after another is taped."""
        ...


@dataclass
class Calls:
    """The calls of one module in one forward pass: inputs, detached, and places in the graph.

    An edge stands for an output without keeping its numbers, which nobody needs once the forward
    pass is over.
    """

    inputs: list[Tensor] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)


@dataclass
class HookTape:
    """The tape behind `observing`; holds the calls of the latest forward pass."""

    blocks: Sequence[Block]
    calls: dict[str, Calls] = field(default_factory=dict)

    def start(self, *_: Any) -> None:
        """Forget the previous forward pass."""
        self.calls = {block.module: Calls() for block in self.blocks}

    def record(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook: keep a call of a tapped module."""
        if not isinstance(output, Tensor) or not output.requires_grad:
            raise DeadBlockError(
                f"{path!r} ({type(module).__name__}) ran without a gradient. Leave "
                "torch.inference_mode() and torch.no_grad(), and make sure its weights require a "
                "gradient."
            )
        given = args[0] if args else next(iter(kwargs.values()), output)
        self.calls[path].inputs.append(given.detach() if isinstance(given, Tensor) else output)
        self.calls[path].edges.append(get_gradient_edge(output))

    def observe(
        self, outputs: Tensor, direction: Tensor, *, retain: bool = False
    ) -> Iterator[tuple[Block, Observation]]:
        """See `Tape.observe`."""
        cotangents = self.cotangents(outputs, direction, retain)
        left = Counter(block.module for block in self.blocks)
        for block in self.blocks:
            pairs = zip(self.calls[block.module].inputs, cotangents[block.module], strict=True)
            # A call without a gradient adds nothing; at least one has a gradient.
            seen = [
                observe_call(block, given, cotangent, len(outputs))
                for given, cotangent in pairs
                if cotangent is not None
            ]
            left[block.module] -= 1
            if not left[block.module]:
                # Given up one by one, while whoever reads this builds something as large.
                del cotangents[block.module]
            yield block, concatenate(seen)

    def cotangents(
        self, outputs: Tensor, direction: Tensor, retain: bool
    ) -> dict[str, list[Tensor | None]]:
        """Gradients at the outputs of every tapped call, by module; `None` for calls unused."""
        self.check_alive()
        tapped = [edge for calls in self.calls.values() for edge in calls.edges]
        gradients = torch.autograd.grad(
            outputs, tapped, direction.to(outputs), retain_graph=retain, allow_unused=True
        )
        stream = iter(gradients)
        found: dict[str, list[Tensor | None]] = {}
        for path, calls in self.calls.items():
            mine = [next(stream) for _ in calls.edges]
            if all(gradient is None for gradient in mine):
                raise DeadBlockError(
                    f"The outputs of the model do not depend on {path!r}, though it ran. It is "
                    "dead weight: freeze it with requires_grad_(False)."
                )
            found[path] = [None if one is None else widen(one) for one in mine]
        return found

    def check_alive(self) -> None:
        """Raise if a tapped module was not called in the forward pass."""
        dead = [path for path, calls in self.calls.items() if not calls.edges]
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
        for block, observation in tape.observe(logits, direction):
            gradients = observation.gradient()   # (N, p, q)
    ```

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
    tape = HookTape(blocks)
    modules = dict(model.named_modules())
    with ExitStack() as hooks, torch.enable_grad():
        start = model.register_forward_pre_hook(tape.start)
        hooks.callback(start.remove)
        for path in dict.fromkeys(block.module for block in blocks):
            if path not in modules:
                raise ModelError(
                    f"The model has no module {path!r}: these are another model's blocks."
                )
            handle = modules[path].register_forward_hook(
                partial(tape.record, path), with_kwargs=True
            )
            hooks.callback(handle.remove)
        yield tape


def concatenate(observations: Sequence[Observation]) -> Observation:
    """Calls of one module (shared layers) side by side: their gradients add."""
    if len(observations) == 1:
        return observations[0]
    return Observation(
        torch.cat([seen.rows for seen in observations], 1),
        torch.cat([seen.columns for seen in observations], 1),
    )


def observe_call(block: Block, given: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
    """One call seen by a block's tap, its shapes checked against `(N, T, p)` and `(N, T, q)`."""
    if given.is_floating_point():
        given = given.to(cotangent)
    observation = block.tap(given, cotangent, n_rows)
    got = (observation.rows.shape[-1], observation.columns.shape[-1])
    if got != block.shape:
        raise ModelError(
            f"Block {block.name!r} has shape {block.shape}, but its tap gave {got}: the module was "
            "called with an input its recognizer does not know."
        )
    return observation


def widen(tensor: Tensor) -> Tensor:
    """Half precision to float32, since factors are sums of many small squares."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
