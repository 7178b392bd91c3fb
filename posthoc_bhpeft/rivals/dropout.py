"""`Dropout`: leave dropout on while predicting, and average over its masks.

    p(y | x) ~ mean_s p(y | x, mask_s)

(Gal and Ghahramani 2016, https://arxiv.org/abs/1506.02142.) The network must have been trained with
dropout for this to mean anything; base models mostly are, adapters often have none of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_draws
from posthoc_bhpeft.rivals.rival import predict_batches

OFF_WHILE_DROPPING = {"gradient_checkpointing": False, "layerdrop": 0.0}
"""What else hangs on the training mode of such a module: attributes, and the value that stops it.

`layerdrop` leaves out whole layers for a whole batch, so rows would not be independent.
"""


@dataclass(frozen=True)
class Dropout:
    """Monte-Carlo dropout. Cost: `samples + 1` forward passes; it needs no further rows.

    Only dropout is switched on: normalisation layers keep their statistics. Besides
    `nn.Dropout` that is attention whose probability is an attribute
    (`F.dropout(..., self.attention_dropout, training=self.training)`, and the fused kernels that
    take it as a number). A probability that a layer reads from the model's config (Falcon) is not
    found. Masks of rows are independent, and those of batches too; they come from `seed` alone,
    and the random state of the process stays as it was.

    Args:
        model: A trained model; after a prediction every mode and setting is as it was.
        likelihood: Of the labels given its outputs.
        samples: `S`, the number of masks.
        p: Use this probability wherever the model has dropout, even one of 0. By default each layer
            keeps its own.
        seed: Of the masks.

    Raises:
        ConfigError: If `samples` or `p` is out of range, or the model has no dropout above 0.
    """

    model: nn.Module
    likelihood: Likelihood = Categorical()
    samples: int = 32
    p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"Dropout(samples={self.samples}): at least 1 is needed.")
        if self.p is not None and not 0 <= self.p < 1:
            raise ConfigError(f"Dropout(p={self.p}): a probability from 0 to below 1 is needed.")
        sites = find_sites(self.model)
        if not sites or (self.p is None and not any(site.p > 0 for site in sites)):
            raise ConfigError(describe_no_dropout(sites))

    @property
    def name(self) -> str:
        """For tables."""
        return "MC dropout"

    def predict(self, inputs: Inputs, seed: int | None = None) -> Prediction:
        """Predict the inputs of one batch, with masks from `seed` or else from that of `self`."""
        inputs = move(inputs, device_of(self.model))
        with torch.no_grad():
            with evaluating(self.model):
                outputs = forward(self.model, inputs)
            with (
                seeded(self.model, self.seed if seed is None else seed),
                dropping(self.model, self.p),
            ):
                draws = torch.stack([forward(self.model, inputs) for _ in range(self.samples)])
        return predict_draws(self.likelihood, outputs, draws)

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`. Each batch has masks of its own."""
        generator = torch.Generator().manual_seed(self.seed)

        def predict(inputs: Inputs) -> Prediction:
            drawn: Tensor = torch.randint(2**62, (1,), generator=generator)
            return self.predict(inputs, int(drawn))

        return predict_batches(loader, predict, self.name, progress)


@dataclass(frozen=True)
class Site:
    """A place where a model drops out.

    Attributes:
        path: Of the module.
        attribute: That holds the probability.
        p: The probability.
        switches: Modules whose training mode switches it on.
    """

    path: str
    attribute: str
    p: float
    switches: tuple[nn.Module, ...] = field(repr=False)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every dropout layer, and every attribute of another module that is a dropout probability.

    A dropout layer is switched on with the module that holds it, for fused attention asks that one
    whether it is training and reads only the probability from the layer.
    """
    modules = dict(model.named_modules())
    sites = []
    for path, module in modules.items():
        is_layer = "dropout" in type(module).__name__.lower()
        holder = modules[path.rpartition(".")[0]] if path else module
        for attribute, value in vars(module).items():
            named = "dropout" in attribute or (is_layer and attribute in ("p", "drop_prob"))
            if named and is_probability(value):
                switches = (module, holder) if is_layer else (module,)
                sites.append(Site(path, attribute, float(value), switches))
    return tuple(sites)


def is_probability(value: Any) -> bool:
    """Whether an attribute's value is a number from 0 to below 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


@contextmanager
def dropping(model: nn.Module, p: float | None = None) -> Iterator[None]:
    """Evaluation mode with dropout alone switched on; everything is put back afterwards.

    Args:
        model: Its modes and attributes are the same on the way out, whatever happens inside.
        p: A probability for every site, or each its own.
    """
    modules = dict(model.named_modules())
    with evaluating(model), ExitStack() as undo:
        for site in find_sites(model):
            if p is None and site.p == 0:
                continue
            for module in site.switches:
                module.training = True
                for attribute, value in OFF_WHILE_DROPPING.items():
                    if hasattr(module, attribute):
                        exchange(undo, module, attribute, value)
            if p is not None:
                exchange(undo, modules[site.path], site.attribute, p)
        yield


def exchange(undo: ExitStack, module: nn.Module, attribute: str, value: Any) -> None:
    """Give an attribute another value until `undo` is closed."""
    undo.callback(setattr, module, attribute, getattr(module, attribute))
    setattr(module, attribute, value)


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers from `seed` on the CPU and on the model's devices; their state is put back."""
    kinds = {parameter.device.type for parameter in model.parameters()} - {"cpu", "meta"}
    with ExitStack() as undo:
        undo.enter_context(torch.random.fork_rng(devices=[]))
        torch.default_generator.manual_seed(seed)
        for kind in sorted(kinds):
            backend = torch.get_device_module(kind)
            devices = range(backend.device_count())
            undo.enter_context(torch.random.fork_rng(devices=devices, device_type=kind))
            backend.manual_seed_all(seed)
        yield


def describe_no_dropout(sites: tuple[Site, ...]) -> str:
    """The message where there is nothing to switch on."""
    if not sites:
        return (
            "MC dropout needs a model with dropout, and this one has no dropout layer or attribute "
            "at all. Compare with the other methods, or train with dropout."
        )
    first = ", ".join(f"{site.path}.{site.attribute}" for site in sites[:3])
    return (
        f"MC dropout needs dropout above 0, and all {len(sites)} places of this model have 0, "
        f"first {first}. Dropout(model, p=0.1) uses 0.1 in all of them; it means little for a "
        "network that was trained without."
    )
