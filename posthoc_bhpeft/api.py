"""`bayesianize` and `BayesianPeft`: the only place where curvature and posterior meet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, Loader, device_of, split_batch
from posthoc_bhpeft.blocks import (
    DEFAULT_RECOGNIZERS,
    Block,
    Engine,
    Product,
    Recognizer,
    discover,
    observing,
)
from posthoc_bhpeft.card import CARD_FILE, explain, model_card, write_card
from posthoc_bhpeft.carrying import (
    check_carried,
    chosen_products,
    describe_carried,
    split_prior,
    start_of,
)
from posthoc_bhpeft.checks import check_arguments, check_data, check_role
from posthoc_bhpeft.curvature import Curvature, FittedCurvature, KroneckerGGN, fit_curvature
from posthoc_bhpeft.errors import CheckpointError, ModelError
from posthoc_bhpeft.folders import finish_replacing, replacing_files
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.matching import check_weights
from posthoc_bhpeft.memory import check_memory, explaining_memory
from posthoc_bhpeft.posterior import Posterior, decompose, read_weights
from posthoc_bhpeft.predictive import Linearized, Link, Prediction
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum, covariance_spectra
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.progress import track
from posthoc_bhpeft.rebuild import (
    describe_model,
    fetch_checkpoint,
    rebuild_model,
    save_model,
    talking_to_hub,
)
from posthoc_bhpeft.saving import SavedPosterior, load_posterior, read_record, save_posterior
from posthoc_bhpeft.selection import HeldOut, LaplaceFit, MatchedPrecision, PriorRule


class Predictive(Protocol):
    """From a posterior to the predictions of a batch: `Linearized`, `Sampled`, `MAP`."""

    def predict(
        self, model: nn.Module, posterior: Posterior, likelihood: Likelihood, inputs: Inputs
    ) -> Prediction:
        """Predict one batch."""
        ...


def bayesianize(
    model: nn.Module,
    loader: Loader,
    *,
    likelihood: Likelihood = Categorical(),
    curvature: Curvature = KroneckerGGN(),
    prior: PriorRule | GaussianPrior = MatchedPrecision(),
    predictive: Predictive = Linearized(),
    recognizers: Sequence[Recognizer] = DEFAULT_RECOGNIZERS,
    engine: Engine = observing,
    products: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> BayesianPeft:
    """Fit a Laplace posterior over everything trainable in a fine-tuned model.

    ```python
    bayes = bayesianize(model, train_loader)
    prediction = bayes.predict(batch)
    prediction.probabilities, prediction.epistemic
    ```

    Args:
        model: A fine-tuned model, on the device to work on. It is not changed.
        loader: The training data: a `DataLoader` or list of batches, each a dict with `labels` or
            a pair `(inputs, labels)`. Read for the labels, for the fit, and for the prior.
        likelihood: `Categorical()`, `Gaussian()` for regression, `Bernoulli()` for multi-label.
        curvature: The estimator of the GGN.
        prior: The rule that chooses the precision of the prior, or the prior itself: what an
            earlier fit learnt (`bayes.as_prior()`), for a posterior chained to that one.
        predictive: How predictions are made, unless asked otherwise.
        recognizers: Find the blocks of each layer; add your own for other layers.
        engine: Makes the per-sample gradients; hooks by default.
        products: Keep the curvature of LoRA layers' `B A` too, for `as_prior(products=True)`.
        generator: Randomness of the curvature's random signs; seeded with 0 by default.
        progress: Show a progress bar.

    Returns:
        The Bayesian model.

    Raises:
        ConfigError: If an argument is of the wrong type.
        ModelError: If the model has nothing trainable, hidden adapters, dead blocks, or NaN.
        DataError: If the loader is empty, read-once, or has missing or wrong labels.
        MemoryLimitError: If the curvature cannot fit into memory, before any pass.
    """
    earlier, rule = split_prior(prior)
    roles = {"likelihood": likelihood, "curvature": curvature, "predictive": predictive}
    check_arguments(model, **roles, **({} if rule is None else {"prior": rule}))
    blocks = discover(model, recognizers)
    check_carried(earlier, blocks, likelihood)
    pairs = chosen_products(blocks, earlier, products)
    check_memory(blocks, curvature, device_of(model), pairs)
    check_data(model, loader, likelihood)
    if isinstance(rule, HeldOut):
        check_data(model, rule.loader, likelihood, "HeldOut(loader)")
    generator = generator or torch.Generator().manual_seed(0)
    with explaining_memory():
        fitted = fit_curvature(
            model,
            blocks,
            loader,
            likelihood,
            curvature,
            engine=engine,
            products=pairs,
            generator=generator,
            progress=lambda batches: track(batches, "Curvature", len(loader), progress),
        )

        def spectra(batches: Loader, link: Link) -> Iterable[CovarianceSpectrum]:
            shown = track(batches, "Prior", len(batches), progress)
            return covariance_spectra(
                model, blocks, posterior.bases, likelihood, shown, link=link, engine=engine
            )

        start = start_of(earlier, rule, blocks)
        posterior = unit_posterior(model, blocks, pairs, fitted, start)
        if rule is None:
            reason = describe_carried(posterior)
            return BayesianPeft(model, posterior, likelihood, predictive, curvature, reason)
        learns_noise = isinstance(likelihood, Gaussian) and likelihood.noise_variance is None
        evidence = replace(posterior.evidence(), learns_noise=learns_noise)
        choice = rule.choose(LaplaceFit(evidence, likelihood, spectra, loader))
    posterior = posterior.with_prior(replace(posterior.prior, precision=choice.precision))
    if choice.noise_variance is not None:
        likelihood = Gaussian(choice.noise_variance)
        noisy = evidence.at_noise(choice.noise_variance)
        posterior = posterior.at_noise(choice.noise_variance, noisy.log_likelihood)
    reason = choice.reason if earlier is None else f"{describe_carried(posterior)} {choice.reason}"
    return BayesianPeft(model, posterior, likelihood, predictive, curvature, reason)


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
    """

    model: nn.Module
    posterior: Posterior
    likelihood: Likelihood
    predictive: Predictive
    curvature: Curvature
    reason: str

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks the posterior is over."""
        return self.posterior.blocks

    @property
    def saved(self) -> SavedPosterior:
        """Everything but the model, as it is written to a folder."""
        settings = (self.likelihood, self.predictive, self.curvature)
        return SavedPosterior(self.posterior, *settings, self.reason)

    def predict(self, batch: Any, predictive: Predictive | None = None) -> Prediction:
        """Predict one batch.

        Args:
            batch: A dict, a tensor or a pair `(inputs, labels)`; labels are kept in the result.
            predictive: Another way to predict, for this call.

        Returns:
            Probabilities and uncertainties, on the model's device.

        Raises:
            ModelError: If the weights of the model changed since the fit.
            MemoryLimitError: If the batch is too large for the device.
        """
        self.check_unchanged()
        return self.predict_checked(batch, predictive)

    def predict_loader(
        self,
        loader: Iterable[Any],
        predictive: Predictive | None = None,
        *,
        progress: bool = True,
    ) -> Prediction:
        """Predict every batch of a loader.

        Args:
            loader: Batches, with or without labels.
            predictive: Another way to predict, for this call.
            progress: Show a progress bar.

        Returns:
            One prediction for all rows, on the CPU.

        Raises:
            DataError: If the loader has no batch.
            ModelError: If the weights of the model changed since the fit.
        """
        self.check_unchanged()
        total = len(loader) if isinstance(loader, Sized) else None
        return Prediction.concatenate(
            [
                self.predict_checked(batch, predictive).cpu()
                for batch in track(loader, "Predict", total, progress)
            ]
        )

    def predict_checked(self, batch: Any, predictive: Predictive | None) -> Prediction:
        """`predict`, without looking whether the weights changed."""
        inputs, labels = split_batch(batch)
        with explaining_memory():
            chosen = self.predictive if predictive is None else predictive
            check_role("predictive", chosen)
            prediction = chosen.predict(self.model, self.posterior, self.likelihood, inputs)
        return prediction.with_labels(labels)

    def check_unchanged(self) -> None:
        """Raise unless the model still stands at the posterior's mean."""
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
        `posterior.safetensors`, and a section of the model card that shows how to load them. If
        the process dies on the way, the folder still loads: what was saved before, or this.

        Args:
            folder: Made where it does not exist; a posterior that is there is replaced.

        Raises:
            CheckpointError: If the folder cannot be written to.
            ModelError: If the weights of the model changed since the fit.
        """
        target = Path(folder)
        self.write_files(target, target.name if target.is_absolute() else str(target))

    def write_files(self, folder: Path, name: str) -> None:
        """`save_pretrained`, with the name that the model card tells people to load."""
        self.check_unchanged()
        with replacing_files(folder) as scratch:
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
        if device is not None:
            model = model.to(device)
        blocks = discover(model, recognizers)
        saved = load_posterior(path, record, model, blocks, predictive=predictive)
        settings = (saved.likelihood, saved.predictive, saved.curvature)
        return cls(model, saved.posterior, *settings, saved.reason)

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
                    repo_id=repo_id, folder_path=str(folder), ignore_patterns=[".cache/*"]
                )
        return str(commit.commit_url)


def unit_posterior(
    model: nn.Module,
    blocks: tuple[Block, ...],
    products: tuple[Product, ...],
    fitted: FittedCurvature,
    prior: GaussianPrior,
) -> Posterior:
    """The posterior of a fit, under a prior whose precision may still be chosen."""
    weights, curvature = read_weights(model, blocks), fitted.operators
    prior = prior.linearized_at(weights)
    return Posterior(
        blocks,
        weights,
        prior,
        curvature,
        {block.name: decompose(prior, block.name, curvature[block.name]) for block in blocks},
        fitted.log_likelihood,
        fitted.n_rows,
        fitted.n_outputs,
        products,
    )
