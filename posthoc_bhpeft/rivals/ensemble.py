"""`Ensemble`: adapters trained separately, their probabilities averaged.

    p(y | x) = mean_m p(y | x, theta_m)

(Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating, forward, move
from posthoc_bhpeft.checkpoints import ADAPTER_FILE, checkpoint_folder, load_adapter
from posthoc_bhpeft.errors import ConfigError, ModelError
from posthoc_bhpeft.likelihood import Categorical, Likelihood
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.uncertainty import predict_draws
from posthoc_bhpeft.rebuild import load_whole
from posthoc_bhpeft.rivals.rival import predict_batches
from posthoc_bhpeft.tasks import TaskModel, split_task
from posthoc_bhpeft.training.record import storage_of


@dataclass(frozen=True)
class Ensemble:
    """Models trained apart. Cost: one forward pass a member, and a whole training for each.

    The total uncertainty is the entropy of the mean, the aleatoric part the mean of the members'
    entropies, and the epistemic part what is left: how much they disagree. In regression the
    members' spread is the covariance of the outputs, beside the likelihood's noise.

    Args:
        models: The members, as `load_ensemble` gives them, or any with the same outputs.
        likelihood: Of the labels given their outputs.

    Raises:
        ConfigError: If there is no member, or members name their classes differently.
    """

    models: tuple[nn.Module, ...]
    likelihood: Likelihood = Categorical()

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("Ensemble(()): at least one member is needed.")
        first, *others = (class_names(model) for model in self.models)
        for number, names in enumerate(others, start=2):
            if None not in (first, names) and names != first:
                raise ConfigError(
                    f"Member {number} of the ensemble has the classes {names}, the first has "
                    f"{first}: their probabilities cannot be averaged. Train all members on the "
                    "same labels, in the same order."
                )

    @property
    def name(self) -> str:
        """For tables."""
        return f"ensemble of {len(self.models)}"

    def predict(self, inputs: Inputs) -> Prediction:
        """Predict the inputs of one batch; the logits are the mean of the members'."""
        draws = [outputs_of(model, inputs).to(device_of(self.models[0])) for model in self.models]
        shapes = {tuple(one.shape) for one in draws}
        if len(shapes) > 1:
            raise ModelError(f"Members of the ensemble have outputs of several shapes: {shapes}.")
        stacked = torch.stack(draws)
        return predict_draws(self.likelihood, stacked.mean(0), stacked)

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`."""
        return predict_batches(loader, self.predict, self.name, progress)


def load_ensemble(
    folders: Sequence[str | Path],
    *,
    likelihood: Likelihood = Categorical(),
    device: str | torch.device | None = None,
    first: nn.Module | None = None,
) -> Ensemble:
    """An ensemble of checkpoint folders, each an adapter or a whole model.

    Members share the memory of every frozen tensor that is the same in all of them, so the base
    model is held once: each further member costs what was trained.

    Args:
        folders: That `bhpeft train` or `save_pretrained` wrote, trained from different seeds.
        likelihood: Of the labels given their outputs.
        device: Where to put the members; the CPU by default.
        first: A member that is loaded already, which comes before those of the folders. If it has
            a task, they are put to the same one.

    Raises:
        CheckpointError: If a folder holds no model.
        ConfigError: If there is no member, or members name their classes differently.
    """
    members = [] if first is None else [first]
    task = None if first is None else split_task(first)[1]
    for folder in folders:
        member = load_member(Path(folder).expanduser())
        # No file of an adapter says what it was asked.
        member = member if task is None else TaskModel(member, task).eval()
        member = member if device is None else member.to(device)
        if members:
            share_frozen(members[0], member)
        members.append(member)
    return Ensemble(tuple(members), likelihood)


def load_member(folder: Path) -> nn.Module:
    """The model of a checkpoint folder, in evaluation mode."""
    if (folder / "config.json").is_file() and not (folder / ADAPTER_FILE).is_file():
        return load_whole(folder, "float32").eval()
    return load_adapter(folder, **storage_of(checkpoint_folder(folder)))


def share_frozen(owner: nn.Module, other: nn.Module) -> int:
    """Let `other` use the memory of `owner` for tensors frozen in both and equal in every number.

    Returns:
        How many bytes that gave back.
    """
    mine, saved = dict(owner.named_parameters()), 0
    for name, parameter in other.named_parameters():
        held = mine.get(name)
        if held is None or held.requires_grad or parameter.requires_grad:
            continue
        if same_tensor(held, parameter):
            parameter.data = held.data
            saved += held.numel() * held.element_size()
    return saved


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in place, type and every number."""
    kind = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return kind and torch.equal(one, other)


def outputs_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Outputs `(N, C)` at a member's own weights, on its own device."""
    with evaluating(model), torch.no_grad():
        return forward(model, move(inputs, device_of(model)))


def class_names(model: nn.Module) -> list[str] | None:
    """Names of the classes, in their order, where the model has them."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    return None if not names else [str(names[index]) for index in sorted(names)]
