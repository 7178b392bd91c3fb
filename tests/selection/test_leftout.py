"""Rows judged without themselves: against dense inverses and against refitting without each row."""

import math

import pytest
import torch
import torch.nn.functional as F

from posthoc_bhpeft.likelihood import Bernoulli, Categorical
from posthoc_bhpeft.predictive.gradients import (
    LabelGradients,
    answer_signs,
    label_directions,
    label_log_odds,
)
from posthoc_bhpeft.selection.hidden import COLDER, NARROWER, WARMER, WIDER, HiddenRows
from posthoc_bhpeft.selection.leaveout import LeaveOneOut, temperatures
from posthoc_bhpeft.selection.leftout import DualVariances, LeftOutRows, most_modest
from tests.models import seeded


def dense(gradients, weights, precision):
    """`H` by hand."""
    identity = torch.eye(gradients.shape[1], dtype=torch.float64)
    return precision * identity + gradients.T @ (weights[:, None] * gradients)


def logistic(x, y, precision, steps=60):
    """The mode of penalised logistic regression, by Newton's method."""
    found = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = (x @ found).sigmoid()
        step = x.T @ (p - y) + precision * found
        found = found - torch.linalg.solve(dense(x, p * (1 - p), precision), step)
    return found


def two_classes(n=150, seed=0):
    """Rows of a linear model with logits `(0, x w)`, and where it was fitted."""
    x = torch.randn(n, 4, generator=seeded(seed), dtype=torch.float64)
    y = (x[:, 0] + torch.randn(n, generator=seeded(seed + 1)).double() > 0).double()
    return x, y


def rows_of(x, y, weights):
    """The same, as gradients of label log-odds, with a curvature of zero in one bin."""
    outputs = torch.stack([torch.zeros(len(x)).double(), x @ weights], -1)
    gradients = x * (2 * y - 1)[:, None]
    energies = gradients.square().sum(1)[None]
    found = LabelGradients(outputs, y.long(), gradients, torch.zeros(1).double(), energies)
    return LeftOutRows.of(Categorical(), found, len(x))


# Variances


@pytest.mark.parametrize("precision", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("width", [5, 60])
def test_variances_are_those_of_the_dense_inverse(precision, width):
    g = torch.randn(40, width, generator=seeded(0), dtype=torch.float64)
    w = torch.rand(40, generator=seeded(1), dtype=torch.float64) / 4
    dual = DualVariances.of(g, w)
    inverse = torch.linalg.inv(dense(g, w, precision))
    assert torch.allclose(dual.inside(precision), torch.einsum("np,pq,nq->n", g, inverse, g))
    for row in (0, 7, 39):
        others = torch.arange(40) != row
        without = torch.linalg.inv(dense(g[others], w[others], precision))
        assert float(dual.outside(precision)[row]) == pytest.approx(
            float(g[row] @ without @ g[row])
        )


def test_a_sample_of_the_rows_stands_for_all_of_them():
    """Each row of a set that holds every row three times has the variances of the whole set."""
    g = torch.randn(30, 4, generator=seeded(0), dtype=torch.float64)
    w = torch.full((30,), 0.2, dtype=torch.float64)
    sample = DualVariances.of(g, 3 * w)
    whole = DualVariances.of(g.repeat(3, 1), w.repeat(3))
    assert torch.allclose(sample.inside(2.0), whole.inside(2.0)[:30])


def test_the_step_predicts_what_refitting_without_a_row_gives():
    x, y = two_classes()
    weights = logistic(x, y, 1.0)
    rows = rows_of(x, y, weights)
    left_out = rows.log_odds() - rows.steps(1.0)
    for row in range(0, 150, 10):
        others = torch.arange(150) != row
        refitted = logistic(x[others], y[others], 1.0)
        exact = float((2 * y[row] - 1) * (x[row] @ refitted))
        plain = abs(float(rows.log_odds()[row]) - exact)
        assert abs(float(left_out[row]) - exact) < 0.05 * plain


def test_left_out_rows_have_the_loss_of_new_rows():
    """A model of many weights flatters its own rows; left out, they score as new rows do."""
    n, size = 200, 60
    truth = torch.randn(size, generator=seeded(9), dtype=torch.float64) / 4
    x = torch.randn(6 * n, size, generator=seeded(0), dtype=torch.float64)
    uniform = torch.rand(6 * n, generator=seeded(1), dtype=torch.float64)
    y = (uniform < (x @ truth).sigmoid()).double()
    weights = logistic(x[:n], y[:n], 2.0)
    rows = rows_of(x[:n], y[:n], weights)
    none = torch.zeros(n, dtype=torch.float64)
    own = float(F.softplus(-rows.log_odds()).mean())
    left_out = float(rows.losses(1.0, rows.steps(2.0), none).mean())
    new = float(F.binary_cross_entropy_with_logits(x[n:] @ weights, y[n:]))
    assert own < 0.8 * new
    assert left_out == pytest.approx(new, rel=0.08)


def test_the_posteriors_variance_grows_as_the_exact_one_does():
    x, y = two_classes()
    rows = rows_of(x, y, logistic(x, y, 1.0))
    grown = rows.predictive_variance(2.0) / rows.gradients.variance(2.0)
    assert torch.allclose(grown, rows.dual.outside(2.0) / rows.dual.inside(2.0))
    assert bool((grown > 1).all())


# Log-odds


def test_log_odds_and_their_gradients_by_autograd():
    outputs = torch.randn(6, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = label_log_odds(Categorical(), outputs, labels)
    p = outputs.softmax(-1)[torch.arange(6), labels]
    assert torch.allclose(found, (p / (1 - p)).log())
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    directions = label_directions(Categorical(), outputs.detach(), labels)
    assert torch.allclose(directions.squeeze(-1), gradient)


def test_answers_count_one_by_one():
    outputs = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    labels = torch.randint(2, (5, 3), generator=seeded(1))
    signs = answer_signs(outputs, labels)
    assert torch.equal(label_log_odds(Bernoulli(), outputs, labels), (outputs * signs).flatten())
    directions = label_directions(Bernoulli(), outputs, labels)
    assert torch.equal(directions, torch.diag_embed(signs))


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_two_classes_and_one_answer_are_the_same_network_however_certain(temperature):
    gaps = torch.tensor([-40.0, -3, 0, 12, 30, 90, 300])
    two = torch.stack([gaps, torch.zeros(7)], 1)
    of_class = label_log_odds(Categorical(), two, torch.zeros(7, dtype=torch.long), temperature)
    of_answer = label_log_odds(Bernoulli(), gaps[:, None], torch.ones(7, 1), temperature)
    assert torch.allclose(of_class, of_answer, rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_the_matched_precision_gives_the_prior_the_log_odds_of_the_network(classes):
    outputs = torch.randn(20, classes, generator=seeded(0), dtype=torch.float64)
    labels = torch.randint(classes, (20,), generator=seeded(1))
    g = torch.randn(20, 9, generator=seeded(2), dtype=torch.float64)
    found = LabelGradients(outputs, labels, g, torch.zeros(1).double(), g.square().sum(1)[None])
    rows = LeftOutRows.of(Categorical(), found, 20)
    moved = label_log_odds(Categorical(), outputs, labels) + math.log(classes - 1)
    prior = g.square().sum(1) / rows.matched_precision()
    assert float(prior.sum()) == pytest.approx(float(moved.square().sum()))


# The choice


def test_the_most_modest_within_two_standard_errors_of_the_best():
    noise = torch.randn(1000, generator=seeded(0)).double()
    noise = (noise - noise.mean()) / noise.std()
    best = torch.randn(1000, generator=seeded(1)).double()
    # Differences of deviation 0.1 over 1000 rows: two standard errors are 0.00632.
    level, worse = best + 0.1 * noise + 0.0063, best + 0.1 * noise + 0.0064
    assert most_modest(torch.stack([worse, level, best])) == 1
    assert most_modest(torch.stack([worse, best, level])) == 1
    assert most_modest(torch.stack([level, worse, best])) == 0
    assert most_modest(torch.stack([best, worse])) == 0


def test_temperatures_go_down_from_one_and_stop_where_classes_have_few_rows():
    tried = temperatures(4, 400)
    assert tried[0] == 1
    assert tried == sorted(tried, reverse=True)
    assert 0.1 - 1e-9 <= min(tried) < 0.1 * math.exp(1 / 20)
    assert temperatures(50, 40) == [1.0]


def shrunk(rows, factor):
    """The same rows from a network whose outputs were multiplied by `factor`."""
    g = rows.gradients
    return LeftOutRows.of(
        rows.likelihood,
        LabelGradients(
            g.outputs * factor, g.labels, g.sketches * factor, g.centres, g.energies * factor**2
        ),
        len(g.outputs),
    )


def test_a_network_that_is_too_unsure_is_made_surer_and_no_other():
    x, y = two_classes(600)
    rows = rows_of(x, y, logistic(x, y, 1.0))
    rule = LeaveOneOut()

    def found(some):
        return rule.sharpening(some, 600)

    assert not found(rows).needed
    assert not found(shrunk(rows, 4.0)).needed
    unsure = found(shrunk(rows, 0.3))
    assert 0.2 < unsure.temperature < 0.7
    assert unsure.after < unsure.before
    assert unsure.width == 1
    assert "surer" in unsure.why


# With rows that have tokens hidden


def strangers(losses):
    """`HiddenRows` that ask for no softer predictions, with these losses `(T, R)` of surer ones."""
    softer = torch.ones(len(WIDER), len(WARMER), losses.shape[1]).double()
    return HiddenRows(softer, losses.expand(len(NARROWER), -1, -1), 0.5)


def test_hidden_rows_need_less_proof_where_left_out_rows_agree():
    x, y = two_classes(600)
    against = rows_of(x, y, logistic(x, y, 1.0))
    agreed = shrunk(against, 0.3)
    noise = torch.randn(400, generator=seeded(0)).double()
    noise = 0.2 * (noise - noise.mean()) / noise.std()
    losses = torch.ones(len(COLDER), 400).double()
    # The standard error is 0.01: one temperature is within one of the best, one within two.
    losses[8], losses[5], losses[3] = 0.5, 0.509 + noise, 0.519 + noise
    rule, hidden = LeaveOneOut(), strangers(losses)
    assert rule.adjustment(agreed, 600, hidden).temperature == COLDER[5]
    assert rule.adjustment(against, 600, hidden).temperature == COLDER[3]
    assert rule.adjustment(agreed, 99, hidden).temperature == 1
    assert rule.adjustment(agreed, 600, None) == rule.sharpening(agreed, 600)


@pytest.mark.parametrize(
    ("n_rows", "coldest"), [(100, 1), (120, 5 / 7), (200, 1 / 3), (400, 1 / 7)]
)
def test_hidden_rows_sharpen_no_further_than_the_rows_of_a_class_allow(n_rows, coldest):
    classes = 50
    outputs = torch.randn(20, classes, generator=seeded(0), dtype=torch.float64)
    labels = torch.randint(classes, (20,), generator=seeded(1))
    g = torch.randn(20, 9, generator=seeded(2), dtype=torch.float64)
    found = LabelGradients(outputs, labels, g, torch.zeros(1).double(), g.square().sum(1)[None])
    rows = LeftOutRows.of(Categorical(), found, n_rows)
    falling = torch.linspace(1, 0, len(COLDER)).double()[:, None].expand(-1, 30)
    chosen = LeaveOneOut().adjustment(rows, n_rows, strangers(falling)).temperature
    assert chosen == min(t for t in COLDER if t >= coldest)


def worried(n_rows):
    """`HiddenRows` that ask for the softest predictions there are."""
    falling = torch.linspace(1, 0, len(WARMER)).double()[:, None].expand(-1, n_rows)
    softer = falling.expand(len(WIDER), -1, -1)
    return HiddenRows(softer, torch.ones(len(NARROWER), len(COLDER), n_rows).double(), 0.5)


def several(outputs, labels):
    """Rows with several labels, whose gradients do not matter."""
    g = torch.randn(labels.numel(), 4, generator=seeded(2), dtype=torch.float64)
    found = LabelGradients(outputs, labels, g, torch.zeros(1).double(), g.square().sum(1)[None])
    return LeftOutRows.of(Bernoulli(), found, len(labels))


def test_of_several_labels_one_that_knows_but_their_frequencies_is_not_softened():
    labels = (torch.rand(600, 2, generator=seeded(0), dtype=torch.float64) < 0.2).double()
    shares = labels.mean(0)
    guess = torch.logit(shares).expand(600, 2)
    rule, signs = LeaveOneOut(), 2 * labels - 1
    knowing = several(guess + signs, labels)
    assert rule.adjustment(knowing, 600, worried(30)).temperature == WARMER[-1]
    for outputs in (guess, guess + 0.05 * signs, 3 * guess):
        assert rule.adjustment(several(outputs, labels), 600, worried(30)).temperature <= 1
    # Of classes, less sure is towards all of them alike.
    x, y = two_classes(600)
    faint = shrunk(rows_of(x, y, logistic(x, y, 1.0)), 0.05)
    assert rule.adjustment(faint, 600, worried(30)).temperature == WARMER[-1]


def test_hardly_better_than_guessing_is_by_a_tenth_of_the_nll():
    labels = (torch.rand(400, 3, generator=seeded(0), dtype=torch.float64) < 0.3).double()
    guess = torch.logit(labels.mean(0)).expand(400, 3)
    losses = []
    for step in torch.linspace(0, 0.6, 61).tolist():
        rows = several(guess + step * (2 * labels - 1), labels)
        nll, guessed = (
            float(F.binary_cross_entropy_with_logits(one, labels, reduction="sum"))
            for one in (rows.gradients.outputs, guess)
        )
        assert rows.softens_to_guessing() == (nll > 0.9 * guessed)
        losses.append(rows.softens_to_guessing())
    assert losses[0]
    assert not losses[-1]
