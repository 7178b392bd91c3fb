"""Small float64 models and loaders that the tests of the core share.

Every function builds afresh from a seed and leaves the global random state alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.curvature import Curvature, DenseGGN
from posthoc_bhpeft.hybrid import HybridConfig
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.selection import FixedPrecision
from tests.hybrid.families import WITHOUT_PREFIX, tiny_model

#: Sizes that keep every block small enough for a dense matrix.
SMALL: dict[str, Any] = {"task_type": "SEQ_CLS", "r": 2, "bottleneck_size": 4}


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def randomize(model: nn.Module, spread: float = 0.2, seed: int = 0) -> nn.Module:
    """Add noise to every trainable tensor, so that no part starts at zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((spread * noise).to(parameter))
    return model


def wrap(model: nn.Module, config: Any, seed: int = 0) -> PeftModel:
    """A peft model in eval mode and float64 with random adapters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    randomize(wrapped.double(), seed=seed)
    return wrapped.eval()


def hybrid(family: str = "bert", *, num_labels: int = 3, **settings: Any) -> PeftModel:
    """LoRA, adapters and (where the family takes one) prefix on a tiny model, all random."""
    settings.setdefault("num_virtual_tokens", 0 if family in WITHOUT_PREFIX else 3)
    base = tiny_model(family, num_labels=num_labels, attention=settings.pop("attention", "sdpa"))
    return wrap(base, HybridConfig(**{**SMALL, **settings}))


def lora(family: str = "bert", *, num_labels: int = 3, **settings: Any) -> PeftModel:
    """Plain peft LoRA."""
    defaults = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
    return wrap(tiny_model(family, num_labels=num_labels), LoraConfig(**{**defaults, **settings}))


def prefix(family: str = "bert", **settings: Any) -> PeftModel:
    """Plain peft prefix tuning."""
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **settings)
    return wrap(tiny_model(family), config)


def linear(n_inputs: int, n_outputs: int, *, bias: bool = False, seed: int = 0) -> nn.Linear:
    """One random linear layer."""
    layer = nn.Linear(n_inputs, n_outputs, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)).double())
    return layer


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with biases and tanh between them."""
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(pairwise(sizes)):
        layers += [linear(n_in, n_out, bias=True, seed=seed + index), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).eval()


class Pooled(nn.Module):
    """`body` at every position of `(N, T, d)`, the mean over positions, `head`."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class PerPosition(nn.Module):
    """`body` at every position of `(N, T, d)`, all `T C` outputs side by side."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


def pairs(
    shape: tuple[int, ...], n_classes: int, *, batches: int = 2, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Batches `(inputs of shape, labels (N,))` for classification."""
    generator = seeded(seed)
    return [
        (
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randint(0, n_classes, shape[:1], generator=generator),
        )
        for _ in range(batches)
    ]


def targets(
    shape: tuple[int, ...], n_outputs: int, *, batches: int = 2, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Batches `(inputs of shape, targets (N, C))` for regression."""
    generator = seeded(seed)
    return [
        (
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randn(shape[0], n_outputs, generator=generator, dtype=torch.float64),
        )
        for _ in range(batches)
    ]


def posterior_of(
    model: nn.Module,
    loader: Loader,
    *,
    precision: float = 2.0,
    curvature: Curvature | None = None,
    likelihood: Likelihood = Categorical(),
) -> Posterior:
    """The posterior at a given prior precision."""
    from posthoc_bhpeft.api import bayesianize

    bayes = bayesianize(
        model,
        loader,
        likelihood=likelihood,
        curvature=curvature or DenseGGN(),
        prior=FixedPrecision(precision),
        progress=False,
    )
    return bayes.posterior
