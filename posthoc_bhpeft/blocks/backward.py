"""One backward pass that hands on the gradients at places in the graph while it goes by them.

`torch.autograd.grad` returns the gradients at all its inputs together, and so holds all of them to
the end: for every tapped module a tensor as large as its output. A hook at a node sees the gradient
when it arrives, and nobody keeps it. Autograd only runs nodes on the way to an input, and does not
run the input itself, so the inputs are the *ends*: places behind which there is no other. They are
few, at the bottom of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Take = Callable[[int, Tensor], None]
"""Given the number of a place and the gradient there."""


@dataclass(frozen=True)
class Places:
    """Places in the graph of one forward pass, ready for any number of backward passes.

    Attributes:
        edges: The places.
        numbers: Which of them are outputs of a node, by node.
        asked: Those that autograd is asked for, at the ends; it comes by the others.
    """

    edges: Sequence[GradientEdge]
    numbers: Mapping[Node, Sequence[int]]
    asked: Sequence[int]

    @classmethod
    def of(cls, edges: Sequence[GradientEdge]) -> Places:
        """Find the ends; one walk through the graph below each place."""
        numbers: dict[Node, list[int]] = {}
        for number, edge in enumerate(edges):
            numbers.setdefault(edge.node, []).append(number)
        return cls(edges, numbers, [number for node in ends(numbers) for number in numbers[node]])

    def hand_on(self, outputs: Tensor, direction: Tensor, take: Take, *, retain: bool) -> None:
        """Call `take` with the gradient of `sum outputs * direction` at every place.

        One call at a time, in the order in which the gradients arrive; places that the outputs do
        not depend on are left out.

        Args:
            outputs: Of the forward pass.
            direction: Of their shape.
            take: Not handed the same place twice.
            retain: Keep the graph for another pass.
        """
        with ExitStack() as hooks:
            self.hook(take, hooks)
            found = torch.autograd.grad(
                outputs,
                [self.edges[number] for number in self.asked],
                direction.to(outputs),
                retain_graph=retain,
                allow_unused=True,
            )
        for number, gradient in zip(self.asked, found, strict=True):
            if gradient is not None:
                take(number, gradient)

    def hook(self, take: Take, hooks: ExitStack) -> None:
        """Have the gradients at all places but the ends taken when they arrive."""
        # With a device_map each device has a thread of its own.
        lock = Lock()

        def arrived(numbers: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
            for number in numbers:
                gradient = gradients[self.edges[number].output_nr]
                if gradient is not None:
                    with lock:
                        take(number, gradient)

        for node in self.numbers.keys() - {self.edges[number].node for number in self.asked}:
            hook = node.register_prehook(partial(arrived, self.numbers[node]))
            hooks.callback(hook.remove)


def ends(nodes: Collection[Node]) -> list[Node]:
    """Those from which a backward pass comes to no other of them."""
    return [node for node in nodes if not leads_to(node, nodes)]


def leads_to(node: Node, others: Collection[Node]) -> bool:
    """Whether a backward pass from a node comes to one of the others."""
    seen: set[Node] = set()
    ahead = [following for following, _ in node.next_functions]
    while ahead:
        one = ahead.pop()
        if one is None or one in seen:
            continue
        if one in others:
            return True
        seen.add(one)
        ahead.extend(following for following, _ in one.next_functions)
    return False
