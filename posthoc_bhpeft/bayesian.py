"""`BayesianPeft`: a fitted model that predicts, explains itself, and is saved."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, split_batch
from posthoc_bhpeft.blocks import (
    DEFAULT_RECOGNIZERS,
    Block,
    Recognizer,
    check_adapters_apart,
    discover,
)
from posthoc_bhpeft.card import CARD_FILE, explain, model_card, write_card
from posthoc_bhpeft.checks import check_role
from posthoc_bhpeft.curvature import Curvature
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.folders import finish_replacing, replacing_files
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.matching import check_weights
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.gathered import gathered
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.progress import track
from posthoc_bhpeft.rebuild import (
    describe_model,
    fetch_checkpoint,
    rebuild_model,
    save_model,
    talking_to_hub,
    with_recorded_task,
)
from posthoc_bhpeft.review import REVIEW_FILE, ReviewRule
from posthoc_bhpeft.saving import SavedPosterior, load_posterior, read_record, save_posterior
from posthoc_bhpeft.shards import own_part, processes_of


class Predictive(Protocol):
    """From a posterior to the predictions of a batch: `Linearized`, `Sampled`, `MAP`."""

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch."""
        ...


@dataclass(frozen=True)
class BayesianPeft:
    """A fine-tuned model with a posterior over its trainable weights.

    Attributes:
        model: The user's own model, at the posterior's mean; never changed.
        posterior: A Gaussian over the weights of every block.
        likelihood: Of the labels given the outputs.
        predictive: How predictions are made by default.
        curvature: The estimator that made the posterior.
        reason: Why the prior is what it is.
        review_rule: Which rows go to a human, if an audit decided that; see `with_review`.
        processes: Those that fitted it together; the first of them saves it.
    """

    model: nn.Module
    posterior: Posterior
    likelihood: Likelihood
    predictive: Predictive
    curvature: Curvature
    reason: str
    review_rule: ReviewRule | None = None
    processes: Processes = field(default_factory=Processes)

    def __repr__(self) -> str:
        # What a notebook shows at the end of a cell; the whole model would be pages.
        parts = (self.posterior, self.likelihood, self.predictive, self.curvature)
        inside = ", ".join([type(self.model).__name__, *map(repr, parts)])
        return f"{type(self).__name__}({inside})"

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks the posterior is over."""
        return self.posterior.blocks

    @property
    def saved(self) -> SavedPosterior:
        """Everything but the model, as it is written to a folder."""
        settings = (self.likelihood, self.predictive, self.curvature)
        return SavedPosterior(self.posterior, *settings, self.reason, self.review_rule)

    def with_review(self, rule: ReviewRule | None) -> BayesianPeft:
        """The same with a rule for which rows go to a human, or with none."""
        return replace(self, review_rule=rule)

    def predict(
        self, batch: Any, predictive: Predictive | None = None, *, review: bool = False
    ) -> Prediction:
        """Predict one batch.

        Args:
            batch: A dict, a tensor or a pair `(inputs, labels)`; labels are kept in the result.
            predictive: Another way to predict, for this call.
            review: Also say which rows go to a human, by the `review_rule`.

        Returns:
            Probabilities and uncertainties, on the model's device.

        Raises:
            ConfigError: If a review is asked for without a rule, or with another predictive than
                the rule was made with.
            ModelError: If the weights of the model changed since the fit.
            MemoryLimitError: If the batch is too large for the device.
        """
        rule = self.rule_for(predictive) if review else None
        self.check_unchanged()
        return self.predict_checked(batch, predictive, rule)

    def predict_loader(
        self,
        loader: Iterable[Any],
        predictive: Predictive | None = None,
        *,
        review: bool = False,
        progress: bool = True,
    ) -> Prediction:
        """Predict every batch of a loader.

        Args:
            loader: Batches, with or without labels. Of one that is divided among processes, each
                predicts its own part and gets the predictions of all, in the order of the data.
            predictive: Another way to predict, for this call.
            review: Also say which rows go to a human, by the `review_rule`.
            progress: Show a progress bar.

        Returns:
            One prediction for all rows, on the CPU.

        Raises:
            ConfigError: As in `predict`.
            DataError: If the loader has no batch.
            ModelError: If the weights of the model changed since the fit.
            ProcessError: If another process failed.
        """
        part = own_part(loader)
        processes = processes_of(part)
        total = len(part) if isinstance(part, Sized) else None
        with processes.together():
            rule = self.rule_for(predictive) if review else None
            self.check_unchanged()
            found = [
                self.predict_checked(batch, predictive, rule).cpu()
                for batch in track(part, "Predict", total, progress and processes.first)
            ]
        return gathered(found, part)

    def predict_checked(
        self, batch: Any, predictive: Predictive | None, rule: ReviewRule | None = None
    ) -> Prediction:
        """`predict`, without looking whether the weights changed.

        Raises:
            ModelError: If the outputs are not those that the posterior was fitted on.
        """
        inputs, labels = split_batch(batch)
        with explaining_memory():
            chosen = self.predictive if predictive is None else predictive
            check_role("predictive", chosen)
            prediction = chosen.predict(self.model, self.posterior, self.likelihood, inputs)
        self.check_outputs(inputs, prediction.logits.shape[-1])
        reviewed = prediction if rule is None else rule.apply(prediction)
        own = None if labels is None else self.likelihood.aligned(labels)
        return reviewed.with_labels(own)

    def check_outputs(self, inputs: Inputs, n_outputs: int) -> None:
        """Raise if the model has other outputs than when the posterior was fitted.

        Raises:
            ModelError: If so. Of multiple choice, a row has as many outputs as choices.
        """
        columns = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
        by_choice = any(
            isinstance(column, Tensor) and column.dim() > 2 and column.shape[1] == n_outputs
            for column in columns
        )
        if n_outputs != self.posterior.n_outputs and not by_choice:
            raise ModelError(
                f"The model gives {n_outputs} outputs a row, and its posterior was fitted on "
                f"{self.posterior.n_outputs}. Of a stream with a head for each round, predict "
                "through the stream, which takes the outputs of the round: Stream.open(folder)"
                ".predict(data, round_name). Else give the model the head it was fitted with, or "
                "fit again."
            )

    def rule_for(self, predictive: Predictive | None) -> ReviewRule:
        """The rule for review, unless it was made with another predictive.

        Raises:
            ConfigError: If so, or if there is no rule.
        """
        if self.review_rule is None:
            raise ConfigError(
                "This posterior has no rule for which rows go to a human. Make one on labelled "
                "rows: `bhpeft audit CHECKPOINT --data held-out.csv --max-error 0.05 "
                "--save-review error`, or bayes.with_review(rule)."
            )
        self.review_rule.check_predictive(self.predictive if predictive is None else predictive)
        return self.review_rule

    def check_unchanged(self) -> None:
        """Raise unless the model still stands at the posterior's mean, its adapters in sight.

        Raises:
            HiddenAdapterError: If an adapter was merged or disabled since.
            ModelError: If weights are others, or gone.
        """
        check_adapters_apart(self.model)
        try:
            check_weights(self.model, self.blocks, self.posterior.mean)
        except CheckpointError as error:
            raise ModelError(
                f"The model was changed after it was bayesianized. {error} Fit again, or "
                "bayesianize a copy.deepcopy of the model if you mean to train on."
            ) from error

    def sample(self, n_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw weights `(S, p, q)` of each block from the posterior."""
        return self.posterior.sample(n_samples, generator)

    def as_prior(
        self, *, forget: float = 0.0, max_terms: int = 2, products: bool = False
    ) -> GaussianPrior:
        """What was learnt, as the prior of the next data; see `Posterior.as_prior`.

        ```python
        prior = bayes.as_prior()
        guard = prior.for_training()
        loss = nll + guard.penalty(model) / n_data          # train on, on the new data alone
        bayes = bayesianize(model, new_loader, prior=Chained(prior))
        ```

        Args:
            forget: Share of the precision to let go.
            max_terms: Kronecker terms to keep in each block; more are merged.
            products: Hold LoRA layers by their product `B A`, for which the posterior must have
                been fitted with `products=True`, rather than by A and B apart.
        """
        return self.posterior.as_prior(forget=forget, max_terms=max_terms, products=products)

    def log_marginal_likelihood(self) -> float:
        """Laplace's approximation of the log evidence, in nats over all training rows."""
        return self.posterior.log_marginal_likelihood()

    def explain(self) -> str:
        """What was fitted, with which prior and why; for people."""
        return explain(self.saved)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and posterior into a folder, whole or not at all.

        The adapter is written as `model.save_pretrained` does; beside it `posterior.json`,
        `posterior.safetensors`, `review.json` if there is a rule for review, and a section of the
        model card that shows how to load them. An older rule goes with its posterior. If the
        process dies on the way, the folder still loads: what was saved before, or this. Of several
        processes that fitted together the first writes, and the others return at once.

        Args:
            folder: Made where it does not exist; a posterior that is there is replaced.

        Raises:
            CheckpointError: If the folder cannot be written to.
            ModelError: If the weights of the model changed since the fit.
        """
        if not self.processes.first:
            return
        target = Path(folder)
        self.write_files(target, target.name if target.is_absolute() else str(target))

    def write_files(self, folder: Path, name: str) -> None:
        """`save_pretrained`, with the name that the model card tells people to load."""
        self.check_unchanged()
        with replacing_files(folder, optional=[REVIEW_FILE]) as scratch:
            save_model(self.model, scratch)
            save_posterior(scratch, self.model, self.saved, describe_model(self.model))
            write_card(scratch, model_card(self.saved, name), existing=folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        model: nn.Module | None = None,
        *,
        base: str | None = None,
        device: str | torch.device | None = None,
        predictive: Predictive | None = None,
        recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS,
    ) -> BayesianPeft:
        """Load what `save_pretrained` or `push_to_hub` wrote.

        Args:
            folder: A folder, or the name of a repository on the hub.
            model: The model with its adapter; rebuilt from the folder where not given.
            base: The base model to rebuild it on, instead of the one recorded.
            device: Where to put a rebuilt model; the CPU by default.
            predictive: How predictions are made, instead of the one recorded.
            recognizers: Those that the posterior was fitted with.

        Returns:
            The Bayesian model, ready to predict.

        Raises:
            CheckpointError: If files are missing or damaged, or belong to another model.
        """
        path = fetch_checkpoint(folder)
        finish_replacing(path)
        record = read_record(path)
        if model is None:
            model = rebuild_model(path, record, base=base)
        model = with_recorded_task(model, record)
        if device is not None:
            model = model.to(device)
        blocks = discover(model, recognizers)
        saved = load_posterior(path, record, model, blocks, predictive=predictive)
        settings = (saved.likelihood, saved.predictive, saved.curvature)
        return cls(model, saved.posterior, *settings, saved.reason, saved.review_rule)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload model and posterior to the hub; a model card that is there is kept and added to.

        Args:
            repo_id: `user/name`; made where it does not exist.
            private: Whether a new repository is private.
            token: Of the hub; the stored one by default.

        Returns:
            Address of the commit.

        Raises:
            CheckpointError: If the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            with talking_to_hub(repo_id, token) as api:
                api.create_repo(repo_id, private=private, exist_ok=True)
                if api.file_exists(repo_id, CARD_FILE):
                    api.hf_hub_download(repo_id, CARD_FILE, local_dir=folder)
            self.write_files(folder, repo_id)
            with talking_to_hub(repo_id, token) as api:
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=str(folder),
                    ignore_patterns=[".cache/*"],
                    # A rule that is there belongs to the posterior replaced here.
                    delete_patterns=[] if self.review_rule is not None else [REVIEW_FILE],
                )
        return str(commit.commit_url)
