"""The learner: one model that goes from round to round, and all that methods do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import device_of, evaluating, forward, move
from posthoc_bhpeft.data import EncodedRows, LengthOrder, TextData, make_loader
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.streams.heads import grow_head, name_outputs
from posthoc_bhpeft.streams.objective import Distill, Objective
from posthoc_bhpeft.streams.rounds import Heads, LabelSpace, Round
from posthoc_bhpeft.streams.tokens import TokenCache
from posthoc_bhpeft.training import TrainingSettings
from posthoc_bhpeft.training.building import build
from posthoc_bhpeft.training.loop import Task, check_device, run_trainer, seeded

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

    from posthoc_bhpeft.training.penalized import Penalty

Rows = Sequence[tuple[str, TextData]]
"""Rows with the name of their round."""

Teacher = Callable[[str, TextData], Tensor]
"""`teacher(round name, N rows)` gives logits (N, C'), such as `Learner.outputs` of a past time."""

# Seeds of two rounds lie so far apart that epochs and classes may count upwards from them.
_SEED_STEP = 1000

_EVALUATION_ROWS = 64


@dataclass(frozen=True)
class _Built:
    """The model, its tokenizer, rows tokenised with it, and its trained weights at the start."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenCache
    initial: dict[str, Tensor]


@dataclass(eq=False)
class Learner:
    """A base model with adapters and a head that grows with the rounds; made by `start`.

    Mutable on purpose: it holds the one model that is trained on and on. What a method carries
    beside it is the method's own. Everything random follows from the seeds, so what a training
    does depends on the weights before it and its seed alone.

    Attributes:
        base: "minilm", the folder of a base model, or a hub name.
        settings: how to train, unless a training says otherwise.
        labels: what every output stands for.
        peft_config: any peft configuration in place of the one that `settings` describe.
        device: "cpu" to leave an accelerator alone; None uses one if there is one.
        progress: show a bar for every training, on standard error.
    """

    base: str
    settings: TrainingSettings
    labels: LabelSpace
    peft_config: PeftConfig | None = None
    device: str | None = None
    progress: bool = False
    _built: _Built | None = field(default=None, init=False, repr=False)

    @classmethod
    def start(
        cls,
        base: str,
        settings: TrainingSettings,
        heads: Heads,
        *,
        peft_config: PeftConfig | None = None,
        device: str | None = None,
        progress: bool = False,
    ) -> Learner:
        """A learner that has met no round; its model is built with the first.

        Raises:
            ConfigError: training on the device is not possible.
        """
        check_device(device, settings)
        return cls(base, settings, LabelSpace(heads), peft_config, device, progress)

    @property
    def started(self) -> bool:
        """Whether there is a model, which is built with the first round."""
        return self._built is not None

    @property
    def model(self) -> PeftModel:
        """The model, in eval mode."""
        return self._parts.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._parts.tokenizer

    @property
    def _parts(self) -> _Built:
        if self._built is None:
            raise ConfigError("The learner has no model before its first round: call meet(round).")
        return self._built

    @property
    def place(self) -> torch.device:
        """Where the model is: on the accelerator, if there is one and it may be used."""
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(self.device or found or "cpu")

    def resume(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, labels: LabelSpace
    ) -> None:
        """Go on with a model trained before, such as one read from a folder.

        The weights it comes with are then those that `reset` goes back to.
        """
        self._built, self.labels = self._placed(model, tokenizer), labels

    def seed_of(self, index: int) -> int:
        """The seed of a round, counted from 0."""
        return self.settings.seed + _SEED_STEP * index

    def meet(self, round_: Round) -> None:
        """Give every label of the round an output; nothing happens where all have one.

        Raises:
            DataError: the round was met with other labels before.
        """
        labels = self.labels.extended(round_)
        n_new = len(labels.names) - len(self.labels.names)
        if self._built is None:
            self._built = self._build(labels)
        elif n_new:
            self._grow(n_new)
            name_outputs(self.model, labels.titles)
        self.labels = labels

    def fit(
        self,
        rows: Rows,
        *,
        seed: int,
        penalty: Penalty | None = None,
        teacher: Teacher | None = None,
        distill: Distill | None = None,
        validation: TextData | Rows | None = None,
        settings: TrainingSettings | None = None,
    ) -> tuple[Mapping[str, float], ...]:
        """Train from the present weights; without any row, nothing happens.

        The loss of a row is its cross entropy among the outputs of its round, so rows of several
        rounds may be mixed. With validation rows the weights of the best epoch are kept.

        Args:
            rows: what to train on.
            seed: of the rows' order and dropout.
            penalty: a second term of the loss, in nats over all these rows.
            teacher: asked once about all rows, before the training; for `distill`.
            distill: a further term, made of a batch's logits and the teacher's.
            validation: rows with the name of their round; without one they are of the last round
                in `rows`.
            settings: how to train this time.

        Returns:
            The figures of every epoch.

        Raises:
            ConfigError: only one of `teacher` and `distill` is given.
            DataError: rows without labels, or with labels that have no output.
            NonFiniteError: the training broke down.
        """
        if (teacher is None) != (distill is None):
            raise ConfigError("teacher and distill belong together: give both of them or neither.")
        held_out = _named(validation, rows)
        rows = [(name, data) for name, data in rows if len(data)]
        if not rows:
            return ()
        objective = self._objective([*rows, *held_out])
        if teacher is not None:
            logits = torch.cat([teacher(name, data).cpu() for name, data in rows])
            objective = replace(objective, teacher=logits, distill=distill)
        n_rows = sum(len(data) for _, data in rows)
        task = Task(
            train=self._numbered(rows, 0),
            validation=self._numbered(held_out, n_rows) if held_out else None,
            collate=self._collate(),
            metrics=objective.metrics,
            loss=objective.loss,
            penalty=penalty,
        )
        settings = replace(settings or self.settings, seed=seed)
        with seeded(seed):
            best = run_trainer(
                self.model, task, settings, progress=self.progress, device=self.device
            )
        return tuple(best.history)

    def reset(self) -> None:
        """Back to the weights before any training, those of all outputs met since included."""
        self.restore(self._parts.initial)

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all trained weights, by name."""
        return trained_weights(self.model)

    @torch.no_grad()
    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Put weights back in place.

        Raises:
            ModelError: the model has no such weights, or of another shape.
        """
        parameters = dict(self.model.named_parameters())
        for name, values in snapshot.items():
            if name not in parameters or parameters[name].shape != values.shape:
                found = tuple(parameters[name].shape) if name in parameters else "nothing"
                raise ModelError(
                    f"The snapshot holds {name!r} of shape {tuple(values.shape)}, the model "
                    f"{found}. A snapshot fits a learner that has met the same rounds."
                )
        for name, values in snapshot.items():
            parameters[name].copy_(values)

    def outputs(self, round_name: str, data: TextData) -> Tensor:
        """All logits (N, C), float32 on the CPU, in the order of the rows.

        Args:
            round_name: of the rows. The outputs are the same for every round; it is there so that
                this method is a `Teacher`.
            data: N rows, with or without labels.
        """
        if len(data) == 0:
            return torch.empty(0, len(self.labels.names))
        model = self.model
        rows = EncodedRows(self._parts.tokens.features(data))
        loader = make_loader(rows, self.tokenizer, batch_size=_EVALUATION_ROWS, by_length=True)
        device = device_of(model)
        with evaluating(model), torch.no_grad(), self._autocast(device):
            parts = [forward(model, move(dict(b), device)).float().cpu() for b in loader]
        order = loader.sampler
        assert isinstance(order, LengthOrder)
        return order.restore(torch.cat(parts))

    def logits(self, round_name: str, data: TextData) -> Tensor:
        """The logits (N, C_round) that rows of the round choose among, see `outputs`."""
        return self.outputs(round_name, data)[:, list(self.labels.columns(round_name))]

    def loader(
        self, round_name: str, data: TextData, batch_size: int = 32, *, by_length: bool = False
    ) -> DataLoader[dict[str, Any]]:
        """Batches whose `labels`, where known, count within the outputs of the round.

        Args:
            round_name: of the rows.
            data: N rows.
            batch_size: rows a batch.
            by_length: long rows first, less padding; `loader.sampler.restore` brings results back.
        """
        tokens = self._parts.tokens
        rows = EncodedRows(tokens.features(data))
        if data.labels is not None:
            rows = tokens.labelled(data, self.labels.within(round_name, data))
        return make_loader(rows, self.tokenizer, batch_size=batch_size, by_length=by_length)

    @contextmanager
    def facing(self, round_name: str) -> Iterator[PeftModel]:
        """Lend the model with the outputs of one round only; names of weights stay as they are.

        `bayesianize` and `predict` then see a classifier (N, C_round). Its forward pass has the
        precision of the settings; factors are summed in float32 all the same.
        """
        model, columns = self.model, list(self.labels.columns(round_name))

        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            output["logits"] = output["logits"][:, columns]
            return output

        everything = len(columns) == len(self.labels.names)
        hook = None if everything else model.register_forward_hook(keep)
        mixed = self._autocast(device_of(model))
        if self.settings.mixed_precision != "no":
            model.forward = mixed(model.forward)  # type: ignore[method-assign]
        try:
            yield model
        finally:
            model.__dict__.pop("forward", None)
            if hook is not None:
                hook.remove()

    def _build(self, labels: LabelSpace) -> _Built:
        with seeded(self.settings.seed):
            model, tokenizer = build(self.base, labels.titles, self.settings, self.peft_config)
        return self._placed(model, tokenizer)

    def _placed(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> _Built:
        model.eval().to(self.place)
        tokens = TokenCache(tokenizer, self.settings.max_length)
        return _Built(model, tokenizer, tokens, trained_weights(model))

    def _grow(self, n_new: int) -> None:
        """New outputs depend on the seed and their place alone, so `reset` finds them again."""
        place = len(self.labels.names)
        grow_head(self.model, n_new, torch.Generator().manual_seed(self.seed_of(place)))
        initial = self._parts.initial
        for name, parameter in self.model.named_parameters():
            if name in initial and len(parameter) > len(initial[name]):
                new = parameter.detach()[len(initial[name]) :]
                initial[name] = torch.cat([initial[name], new])

    def _objective(self, rows: Rows) -> Objective:
        allowed = torch.zeros(len(rows), len(self.labels.names), dtype=torch.bool)
        for group, (name, _) in enumerate(rows):
            allowed[group, list(self.labels.columns(name))] = True
        targets = [t for name, data in rows for t in self.labels.targets(name, data)]
        groups = [group for group, (_, data) in enumerate(rows) for _ in range(len(data))]
        return Objective(torch.tensor(targets), torch.tensor(groups), allowed)

    def _numbered(self, rows: Rows, start: int) -> EncodedRows:
        """The rows, their labels replaced by their numbers in the objective."""
        tokens = self._parts.tokens
        features = [row for _, data in rows for row in tokens.features(data)]
        return EncodedRows(tuple({**r, "labels": start + i} for i, r in enumerate(features)))

    def _collate(self) -> Callable[[list[Any]], dict[str, Any]]:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer)  # type: ignore[no-any-return]

    def _autocast(self, device: torch.device) -> torch.autocast:
        half = torch.float16 if self.settings.mixed_precision == "fp16" else torch.bfloat16
        enabled = self.settings.mixed_precision != "no"
        return torch.autocast(device.type, dtype=half, enabled=enabled)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights that require gradients, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _named(validation: TextData | Rows | None, rows: Rows) -> Rows:
    """Validation rows with the name of their round."""
    if validation is None or not rows:
        return ()
    if isinstance(validation, TextData):
        validation = ((rows[-1][0], validation),)
    return tuple((name, data) for name, data in validation if len(data))
