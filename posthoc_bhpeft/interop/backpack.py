"""`BackPACK()`: per-sample gradients from BackPACK's `BatchGrad`, as an engine.

```python
bayes = bayesianize(model, loader, engine=BackPACK())
```

An independent second opinion on the hooks of `observing`, and a way to bring BackPACK handlers of
your own layers. Only layers with trainable tensors are extended: extending a whole transformers
model fails, because its modules pass more than tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from backpack import backpack, extend
from backpack.context import CTX
from backpack.extensions import BatchGrad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from posthoc_bhpeft.blocks import Block, Observation, See
from posthoc_bhpeft.errors import ConfigError, DeadBlockError, ModelError
from posthoc_bhpeft.hybrid import PrefixKV

SAVEFIELD = "bhpeft_grad_batch"
"""Not BackPACK's own `grad_batch`, which may hold results of the user's."""


class BatchGradPrefix(FirstOrderModuleExtension):  # type: ignore[misc]  # untyped library
    """`BatchGrad` of `PrefixKV`: its output has a batch axis, so the gradient there is `G_n`."""

    def __init__(self) -> None:
        super().__init__(params=["weight"])

    def weight(
        self,
        extension: BatchGrad,
        module: nn.Module,
        g_inp: tuple[Tensor, ...],
        g_out: tuple[Tensor, ...],
        quantities: Any,
    ) -> Tensor:
        """Per-sample gradients `(N, 2, H, T, d)`; called by BackPACK."""
        return g_out[0]


@dataclass(frozen=True)
class BackPACK:
    """An engine (`blocks.Engine`) whose gradients come from BackPACK.

    BackPACK gives gradients, not the inputs and output gradients behind them, so `KFAC()` is
    refused. Weight gradients are computed on the way: expect more time and memory than hooks take.

    Args:
        handlers: A BackPACK module extension for each further type of layer; `nn.Linear` and the
            prefix of a hybrid are built in.

    Raises:
        ConfigError: If BackPACK has a handler for one of these types already.
    """

    handlers: Mapping[type[nn.Module], FirstOrderModuleExtension] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.extension()

    def extension(self) -> BatchGrad:
        """A `BatchGrad` that knows the prefix and the handlers given."""
        extension = BatchGrad()
        extension.savefield = SAVEFIELD
        pairs = [(PrefixKV, BatchGradPrefix()), *self.handlers.items()]
        for layer, handler in pairs:
            try:
                extension.set_module_extension(layer, handler)
            except ValueError as error:
                raise ConfigError(
                    f"BackPACK() has a handler for {layer.__name__} already; replacing it would "
                    "change results silently. Leave it out of handlers=, or give your layer a "
                    "class of its own."
                ) from error
        return extension

    @contextmanager
    def __call__(self, model: nn.Module, blocks: Sequence[Block]) -> Iterator[BackPACKTape]:
        """Tape the forward passes of a model; see `blocks.observing`.

        Args:
            model: Extended while the context is open, then put back as it was.
            blocks: From `discover`.

        Yields:
            A tape of the latest forward pass.

        Raises:
            ModelError: If BackPACK has no rule for a layer with a trainable tensor.
        """
        if torch.is_inference_mode_enabled():
            raise ModelError("torch.inference_mode() is on, and gradients are needed. Leave it.")
        tapped = tapped_modules(model, blocks)
        check_outputs(blocks)
        self.check_supported(tapped)
        tape = BackPACKTape(blocks, dict(model.named_parameters()), self.extension())
        with ExitStack() as undo, torch.enable_grad():
            undo.callback(tape.forget)
            handle = model.register_forward_pre_hook(tape.start)
            undo.callback(handle.remove)
            for path, module in tapped.items():
                undo.enter_context(extended(module))
                handle = module.register_forward_hook(partial(tape.count, path))
                undo.callback(handle.remove)
            yield tape

    def check_supported(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise at the first layer that BackPACK has no rule for."""
        supported = (nn.Linear, PrefixKV, *self.handlers)
        for path, module in modules.items():
            if type(module) not in supported:
                names = ", ".join(layer.__name__ for layer in supported)
                raise ModelError(
                    f"BackPACK() has no per-sample gradients of {path!r} "
                    f"({type(module).__name__}); it has those of {names}. Pass handlers= with a "
                    "BackPACK extension of that layer, freeze its tensors, or use the default "
                    "engine, observing."
                )


@dataclass
class BackPACKTape:
    """The tape of `BackPACK`; BackPACK itself keeps the forward pass on the extended layers."""

    blocks: Sequence[Block]
    parameters: Mapping[str, nn.Parameter]
    extension: BatchGrad
    calls: dict[str, int] = field(default_factory=dict)

    def start(self, *_: Any) -> None:
        """Forget the previous forward pass."""
        self.calls = {block.module: 0 for block in self.blocks}

    def count(self, path: str, *_: Any) -> None:
        """Forward hook: count a call of a tapped module."""
        self.calls[path] += 1

    def forget(self) -> None:
        """Drop the per-sample gradients that BackPACK left on the parameters."""
        for block in self.blocks:
            vars(self.parameters[block.parameter]).pop(SAVEFIELD, None)

    def observe(
        self, outputs: Tensor, direction: Tensor, see: See, *, retain: bool = False
    ) -> None:
        """See `blocks.Tape.observe`."""
        self.check_calls()
        names = list(dict.fromkeys(block.parameter for block in self.blocks))
        self.forget()
        with backpack(self.extension, retain_graph=retain), warnings.catch_warnings():
            # The first layer's input needs no gradient; BackPACK uses the one at its output.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            gradients = torch.autograd.grad(
                outputs,
                [self.parameters[name] for name in names],
                direction.to(outputs),
                retain_graph=retain,
                allow_unused=True,
            )
        dead = [name for name, one in zip(names, gradients, strict=True) if one is None]
        if dead:
            raise DeadBlockError(
                f"The outputs of the model do not depend on {dead[0]!r}. It is dead weight: freeze "
                "it with requires_grad_(False)."
            )
        for block in self.blocks:
            see(block, self.observation(block, len(outputs)))

    def observation(self, block: Block, n_rows: int) -> Observation:
        """`G_n` of one block, as identity times itself on the shorter side."""
        found = getattr(self.parameters[block.parameter], SAVEFIELD, None)
        if found is None:
            raise ModelError(
                f"BackPACK left no per-sample gradient of {block.parameter!r}. Does an input of "
                "the model require a gradient (enable_input_require_grads)? Use the default "
                "engine, observing."
            )
        # More leading rows than the batch has: the model flattened rows and positions.
        each = found.detach().reshape(n_rows, -1, *found.shape[1:]).sum(1)
        each = each.float() if each.dtype in (torch.float16, torch.bfloat16) else each
        return Observation.of_gradient(torch.vmap(block.view.read)(each))

    def check_calls(self) -> None:
        """Raise unless each tapped module was called exactly once."""
        dead = [path for path, n in self.calls.items() if n == 0]
        if dead or not self.calls:
            raise DeadBlockError(
                f"{len(dead)} tapped module(s) took no part in the forward pass, first: "
                f"{dead[:1]}. Activate the adapter, or freeze its tensors."
            )
        shared = [path for path, n in self.calls.items() if n > 1]
        if shared:
            raise ModelError(
                f"{shared[0]!r} was called {self.calls[shared[0]]} times in one forward pass "
                "(shared layers); BackPACK keeps the last call only. Use the default engine, "
                "observing."
            )


def check_outputs(blocks: Sequence[Block]) -> None:
    """Raise at the first block that is taped where a module is given it, not at an output.

    Raises:
        ModelError: With the way out.
    """
    given = next((block for block in blocks if block.site is not None), None)
    if given is not None:
        raise ModelError(
            f"BackPACK() has no per-sample gradients of {given.parameter!r}, whose copies for each "
            f"row are given to {given.module!r}. Freeze it, or use the default engine, observing."
        )


def tapped_modules(model: nn.Module, blocks: Sequence[Block]) -> dict[str, nn.Module]:
    """The modules that blocks are tapped at, by path."""
    modules = dict(model.named_modules())
    paths = list(dict.fromkeys(block.module for block in blocks))
    for path in paths:
        if path not in modules:
            raise ModelError(f"The model has no module {path!r}: these are another model's blocks.")
    return {path: modules[path] for path in paths}


@contextmanager
def extended(module: nn.Module) -> Iterator[None]:
    """A module extended by BackPACK for the time of the context, then as it was.

    A module that the user extended keeps its extension, and what BackPACK stored on it.
    """
    before = dict(vars(module))
    first = len(CTX.hook_handles)
    extend(module)
    mine = CTX.hook_handles[first:]
    try:
        yield
    finally:
        for handle in mine:
            handle.remove()
        CTX.hook_handles = [handle for handle in CTX.hook_handles if handle not in mine]
        for name in set(vars(module)) - set(before):
            del vars(module)[name]
        vars(module).update(before)
