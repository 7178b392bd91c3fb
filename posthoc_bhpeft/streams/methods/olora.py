"""O-LoRA: one LoRA a round on top of the frozen older ones, kept orthogonal to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.hybrid.linear import HybridLinear
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.methods.method import StreamRun
from posthoc_bhpeft.streams.rounds import Round
from posthoc_bhpeft.training import TrainingSettings


class Overlap(str, Enum):
    """How the entries of `A_i A^T` are added up."""

    #: Their squares, as the paper writes it.
    SQUARED = "squared"
    #: Their absolute values, as the code that the authors published computes it.
    ABSOLUTE = "absolute"


@dataclass(frozen=True)
class OrthogonalLoRA:
    """O-LoRA (Wang et al., 2023, https://arxiv.org/abs/2310.14152).

    In round t every adapted weight is `W + sum_{i<t} s B_i A_i + s B A`, where only the last pair
    is trained, on the mean cross-entropy of the round's rows plus

        weight * sum_{i<t} |A_i A^T|^2       (squared entries; or absolute ones, see `overlap`)

    so that the new update reads from inputs that the old ones do not use. Prediction uses the sum
    of all pairs and needs no round name beyond the head's.

    The old pairs never change again, so their products are folded into the frozen base weight: the
    same function, with one pair to train at any time and none to switch (peft allows one active
    adapter only where a head is saved along). Equal up to rounding in the base's dtype.

    `save_pretrained` writes adapters only, hence the last pair without the folded ones.

    As published it is a method for LoRA, so the learner's hybrid must have no other part:
    start it with `settings_for(settings)`.

    Differences from the paper: a classifier head, trained on in every round as in a warm start,
    where the paper has a text-to-text model without one, and nothing guards it; LoRA on the
    modules that the hybrid takes; the optimizer and the schedule of `TrainingSettings`.

    Attributes:
        weight: the paper's lambda_1, beside the cross-entropy of one row; 0.5 in its code. The two
            sums differ by orders of magnitude (a fresh A of q columns overlaps by about
            1 / (3 sqrt(q)) an entry), so a weight found for one says nothing about the other.
        overlap: squared or absolute entries.
    """

    weight: float = 0.5
    overlap: Overlap = Overlap.SQUARED

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ConfigError(f"weight is {self.weight}; O-LoRA takes 0 or more.")

    @staticmethod
    def settings_for(settings: TrainingSettings) -> TrainingSettings:
        """The same training with LoRA as the only part."""
        return replace(settings, peft="lora")

    def start(self, learner: Learner) -> StreamRun:
        """A run with this learner, whose base weights it changes as rounds are folded in."""
        return _OrthogonalRun(self, learner)


class OrthogonalityPenalty:
    """`weight * sum_modules sum_i |A_i A^T|^2` with the old A_i frozen.

    Args:
        past: for every adapted module, the rows of all old A_i, (t r, q).
        weight: on the whole sum, in nats over the whole data.
        overlap: squared or absolute entries.
    """

    def __init__(
        self, past: Mapping[str, Tensor], weight: float, overlap: Overlap = Overlap.SQUARED
    ) -> None:
        self._past, self._weight, self._overlap = dict(past), weight, overlap

    def penalty(self, model: nn.Module) -> Tensor:
        """The scalar, differentiable with respect to the A of every module."""
        terms = [self._term(model.get_submodule(name), old) for name, old in self._past.items()]
        return self._weight * torch.stack(terms).sum()

    def _term(self, module: nn.Module, old: Tensor) -> Tensor:
        assert isinstance(module, HybridLinear)
        first, _ = _pair(module)
        entries = old.to(first) @ first.T
        return (entries.square() if self._overlap is Overlap.SQUARED else entries.abs()).sum()


@dataclass
class _OrthogonalRun:
    method: OrthogonalLoRA
    learner: Learner
    #: A (r, q) and B (p, r) of every round folded so far, for each module.
    folded: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    trained: bool = False

    def learn(self, round_: Round, index: int) -> None:
        """Fold the last pair away, then train a fresh one."""
        self.learner.meet(round_)
        check_lora_alone(self.learner.model)
        if len(round_.train) == 0:
            return
        seed = self.learner.seed_of(index)
        if self.trained:
            self._next_pair(torch.Generator().manual_seed(seed))
        self.learner.fit(
            [(round_.name, round_.train)],
            penalty=self.penalty(len(round_.train)),
            seed=seed,
            validation=round_.validation,
        )
        self.trained = True

    def probabilities(self, round_name: str, data: TextData) -> Tensor:
        """(N, C_round), float64, of the sum of all pairs."""
        return self.learner.logits(round_name, data).double().softmax(1)

    @property
    def state_bytes(self) -> int:
        """The folded pairs: with the base as it came, these factors are all one needs."""
        pairs = [pair for pairs in self.folded.values() for pair in pairs]
        return sum(factor.nbytes for pair in pairs for factor in pair)

    def penalty(self, n_rows: int) -> OrthogonalityPenalty | None:
        """The term for a training on so many rows; None before anything is folded."""
        if not self.folded:
            return None
        past = {name: torch.cat([a for a, _ in pairs]) for name, pairs in self.folded.items()}
        # The paper adds it to a mean over rows, and the Trainer divides a penalty by their number.
        return OrthogonalityPenalty(past, self.method.weight * n_rows, self.method.overlap)

    def _next_pair(self, generator: torch.Generator) -> None:
        for name, module in lora_modules(self.learner.model):
            self.folded.setdefault(name, []).append(fold(module))
            restart(module, generator)


def lora_modules(model: nn.Module) -> Iterator[tuple[str, HybridLinear]]:
    """Every module of the model that carries LoRA, by name."""
    for name, module in model.named_modules():
        if isinstance(module, HybridLinear):
            yield name, module


def check_lora_alone(model: nn.Module) -> None:
    """Raises a ConfigError unless LoRA of our tuner is all there is beside the head."""
    parts = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    others = [n for n, m in parts.items() if not (isinstance(m, HybridLinear) and m.mergeable)]
    if parts and not others:
        return
    found = f"{others[0]!r} carries another part" if others else "this model carries no LoRA"
    raise ConfigError(
        f"O-LoRA is defined for LoRA alone, and {found}. Supported: a hybrid with bottleneck_size, "
        "num_virtual_tokens and gates off. Start the learner with "
        "OrthogonalLoRA.settings_for(settings)."
    )


@torch.no_grad()
def fold(module: HybridLinear) -> tuple[Tensor, Tensor]:
    """Add `s B A` to the base weight for good; returns copies of A (r, q) and B (p, r).

    The pair itself stays, so the caller must start it anew: see `restart`.
    """
    weight = module.get_base_layer().weight
    assert isinstance(weight, Tensor)
    weight.add_(module.lora_delta(module.active_adapters[0]).to(weight.dtype))
    first, second = _pair(module)
    return first.detach().clone(), second.detach().clone()


@torch.no_grad()
def restart(module: HybridLinear, generator: torch.Generator) -> None:
    """A drawn anew as for a new adapter, B zero: the function stays as it is."""
    first, second = _pair(module)
    fresh = torch.empty(first.shape)
    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
    first.copy_(fresh)
    second.zero_()


def _pair(module: HybridLinear) -> tuple[Tensor, Tensor]:
    name = module.active_adapters[0]
    first, second = module.bhpeft_lora_A[name].weight, module.bhpeft_lora_B[name].weight
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return first, second
