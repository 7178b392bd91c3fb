"""One backward pass that hands on the gradients at places in the graph while it goes by them.

`torch.autograd.grad` returns the gradients at all its inputs together, and so holds all of them to
the end: for every tapped module a tensor as large as its output. A hook at a node sees the gradient
when it arrives, and nobody keeps it. Autograd only runs nodes on the way to an input, and does not
run the input itself, so the inputs are the *ends*: places behind which there is no other. They are
few, at the bottom of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from threading import Lock

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Take = Callable[[int, Tensor], None]
"""Given the number of a place and the gradient there."""


def hand_on(
    outputs: Tensor, direction: Tensor, places: Sequence[GradientEdge], take: Take, *, retain: bool
) -> None:
    """Call `take` with the gradient of `sum outputs * direction` at every place.

    One call at a time, in the order in which the gradients arrive; places that the outputs do not
    depend on are left out.

    Args:
        outputs: Of a forward pass.
        direction: Of their shape.
        places: In its graph.
        take: Not handed the same place twice.
        retain: Keep the graph for another pass.
    """
    # With a device_map each device has a thread of its own.
    lock = Lock()

    def arrived(numbers: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
        for number in numbers:
            gradient = gradients[places[number].output_nr]
            if gradient is not None:
                with lock:
                    take(number, gradient)

    numbers: dict[Node, list[int]] = {}
    for number, place in enumerate(places):
        numbers.setdefault(place.node, []).append(number)
    last = ends(numbers)
    with ExitStack() as hooks:
        for node in numbers.keys() - last:
            mine = numbers[node]
            hook = node.register_prehook(lambda found, mine=mine: arrived(mine, found))
            hooks.callback(hook.remove)
        asked = [number for node in last for number in numbers[node]]
        found = torch.autograd.grad(
            outputs,
            [places[number] for number in asked],
            direction.to(outputs),
            retain_graph=retain,
            allow_unused=True,
        )
    for number, gradient in zip(asked, found, strict=True):
        if gradient is not None:
            take(number, gradient)


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
