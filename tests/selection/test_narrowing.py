"""Regression: how wide a posterior rows with tokens hidden see a reason for."""

import math

import pytest
import torch

from posthoc_bhpeft import Gaussian, LeaveOneOut, LogOdds, VisiblePrecision, bayesianize
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection import PriorChoice
from posthoc_bhpeft.selection.heldout import losses_at
from posthoc_bhpeft.selection.narrowing import TIMES, narrowed
from tests.models import mlp, seeded, targets
from tests.tuned import tuned


def spectrum(residuals, energy=4.0, eigenvalue=0.0):
    """Rows of one output at 0, whose labels are the residuals."""
    n = len(residuals)
    return CovarianceSpectrum(
        torch.zeros(n, 1).double(),
        residuals,
        torch.ones(n, 1, 1).double(),
        torch.tensor([eigenvalue]).double(),
        torch.full((1, n, 1, 1), energy).double(),
    )


def residuals(variance, n=1000):
    """Of mean 0 and exactly this mean square."""
    drawn = torch.randn(n, generator=seeded(0)).double()
    drawn -= drawn.mean()
    return drawn * math.sqrt(variance) / drawn.square().mean().sqrt()


@pytest.mark.parametrize("width", TIMES)
def test_the_variance_that_the_residuals_have(width):
    """Noise 0.5, and 4 / (2 width) of the weights: the best is where residuals have just that."""
    parts = residuals(0.5 + 2.0 / width).split(300)
    choice = PriorChoice({"a": 2.0, "b": 2.0}, "Because.", noise_variance=0.5)
    found = narrowed(choice, Gaussian(), map(spectrum, parts), 0.4)
    assert found.precision == {"a": 2.0 * width, "b": 2.0 * width}
    assert found.noise_variance == 0.5
    assert found.reason.startswith("Because. 1000 training rows with 40% of their tokens hidden ")
    if width == 1:
        assert "ask for nothing else (NLL" in found.reason
    else:
        before, after = (losses(residuals(0.5 + 2 / width), 0.5 + 2 / w).mean() for w in (1, width))
        told = f"{width:.0f} times that precision (NLL {before:.3f} without, {after:.3f} so)."
        assert told in found.reason


def losses(found, variance):
    return found.square() / (2 * variance) + math.log(2 * math.pi * variance) / 2


@pytest.mark.parametrize(
    ("likelihood", "learnt", "variance"),
    [(Gaussian(0.5), None, 0.5 + 4 / (3 + 2)), (Gaussian(), 0.5, 0.5 + 4 / (3 / 0.5 + 2))],
)
def test_noise_that_is_learnt_scales_the_curvature_and_noise_that_is_given_is_in_it(
    likelihood, learnt, variance
):
    said = residuals(1.0, 20)
    found = losses_at(likelihood, LogOdds(), spectrum(said, eigenvalue=3.0), 2.0, learnt)
    assert torch.allclose(found, losses(said, variance))


def test_texts_are_shown_with_tokens_hidden():
    model = tuned(num_labels=1)
    ids = torch.randint(5, 60, (12, 10), generator=seeded(1))
    answers = torch.randn(12, 1, generator=seeded(2))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": answers}]

    def fitted(prior):
        return bayesianize(model, batches, likelihood=Gaussian(), prior=prior, progress=False)

    default, visible, shown = map(
        fitted, (LeaveOneOut(), VisiblePrecision(), LeaveOneOut(hidden=0))
    )
    assert shown.reason == visible.reason
    assert default.reason.startswith(f"{visible.reason} 12 training rows with 50% of their tokens")
    [wide], [chosen] = (set(one.posterior.prior.precision.values()) for one in (visible, default))
    assert any(chosen == pytest.approx(wide * width) for width in TIMES)
    assert default.likelihood == visible.likelihood


def test_what_has_no_tokens_is_as_wide_as_the_evidence_says():
    model, loader = mlp(4, 1), targets((6, 4), 1)
    default, visible = (
        bayesianize(model, loader, likelihood=Gaussian(), prior=prior, progress=False)
        for prior in (LeaveOneOut(), VisiblePrecision())
    )
    assert default.reason == visible.reason
    assert default.posterior.prior.precision == visible.posterior.prior.precision
