"""The contract of estimators, and each structure against the dense GGN of `jacrev`."""

import pytest
import torch

from posthoc_bhpeft.blocks import Block, Kind, MatrixView, Observation, discover
from posthoc_bhpeft.blocks.linear import observe_weight
from posthoc_bhpeft.curvature import (
    KFAC,
    Contrasts,
    DenseGGN,
    DiagonalGGN,
    EmpiricalFisher,
    Exact,
    KroneckerGGN,
    RandomSigns,
    fit_curvature,
)
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from tests.contracts import check_curvature
from tests.hybrid.families import tiny_loader
from tests.models import (
    PerPosition,
    Pooled,
    hybrid,
    linear,
    lora,
    mlp,
    pairs,
    prefix,
    seeded,
    targets,
)
from tests.oracles import dense_ggn, loss_gradients, relative_error


def fit(model, loader, estimator, likelihood=Categorical(), seed=0):
    blocks = discover(model)
    fitted = fit_curvature(model, blocks, loader, likelihood, estimator, generator=seeded(seed))
    return fitted.operators


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    "estimator",
    [
        KroneckerGGN(),
        KroneckerGGN(Exact()),
        DiagonalGGN(),
        DiagonalGGN(Contrasts()),
        DenseGGN(),
        DenseGGN(Exact()),
    ],
    ids=repr,
)
def test_estimators_of_the_exact_trace(estimator):
    check_curvature(estimator)


@pytest.mark.parametrize("estimator", [KFAC(), KFAC(reduce=True)], ids=repr)
def test_kfac_satisfies_the_contract_apart_from_its_trace(estimator):
    check_curvature(estimator, exact_trace=False)


@pytest.mark.parametrize("structure", [KroneckerGGN, DiagonalGGN, DenseGGN])
def test_empirical_fisher_satisfies_the_contract_apart_from_its_trace(structure):
    check_curvature(structure(directions=EmpiricalFisher()), exact_trace=False)


@pytest.mark.parametrize("structure", [KroneckerGGN, DiagonalGGN, DenseGGN, KFAC])
def test_random_signs_are_reproducible_by_their_generator(structure):
    check_curvature(structure(directions=RandomSigns()), exact_trace=False, random=True)


# ---------------------------------------------------------------- dense: the exact block GGN


@pytest.mark.parametrize(
    ("family", "tolerance"),
    [("bert", 1e-10), ("distilbert", 1e-10), ("llama", 1e-5), ("t5", 1e-5)],
)
def test_dense_is_the_exact_ggn_of_every_block_of_a_hybrid(family, tolerance):
    model = hybrid(family, bottleneck_size=2)
    loader = tiny_loader(model)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    for name, operator in fit(model, loader, DenseGGN()).items():
        assert relative_error(operator.dense(), exact[name]) < tolerance, name


@pytest.mark.parametrize("make", [lora, prefix])
def test_dense_is_the_exact_ggn_of_plain_peft_models(make):
    model = make()
    loader = tiny_loader(model)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    for name, operator in fit(model, loader, DenseGGN()).items():
        assert relative_error(operator.dense(), exact[name]) < 1e-10, name


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), Gaussian(0.2)], ids=repr)
def test_dense_is_exact_for_the_other_likelihoods(likelihood):
    model, loader = mlp(3, 4, 2), targets((5, 3), 2)
    if isinstance(likelihood, Bernoulli):
        loader = [(x, (y > 0).double()) for x, y in loader]
    exact = dense_ggn(model, discover(model), loader, likelihood)
    for name, operator in fit(model, loader, DenseGGN(), likelihood).items():
        assert relative_error(operator.dense(), exact[name]) < 1e-12, name


@pytest.mark.parametrize("structure", [KroneckerGGN, DiagonalGGN, DenseGGN, KFAC])
def test_exact_and_contrasts_agree(structure):
    model, loader = mlp(3, 4, 4), pairs((5, 3), 4)
    whole = fit(model, loader, structure(directions=Exact()))
    fewer = fit(model, loader, structure(directions=Contrasts()))
    for name, operator in whole.items():
        assert torch.allclose(fewer[name].dense(), operator.dense(), rtol=1e-10), name


def test_dense_refuses_a_block_that_is_too_large_by_name():
    model = mlp(3, 4, 2)
    with pytest.raises(ConfigError, match=r"'0\.weight' has 12 weights.*max_size=11"):
        fit(model, pairs((4, 3), 2), DenseGGN(max_size=11))


# ---------------------------------------------------------------- diagonal


@pytest.mark.parametrize(("family", "tolerance"), [("bert", 1e-10), ("llama", 1e-5)])
def test_diagonal_is_the_diagonal_of_the_exact_ggn(family, tolerance):
    model = hybrid(family)
    loader = tiny_loader(model)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    for name, operator in fit(model, loader, DiagonalGGN()).items():
        assert relative_error(operator.diagonal.flatten(), exact[name].diagonal()) < tolerance


# ---------------------------------------------------------------- Kronecker


@pytest.mark.parametrize(("family", "tolerance"), [("bert", 1e-10), ("llama", 1e-5)])
def test_kronecker_is_exact_in_trace_and_for_vectors(family, tolerance):
    model = hybrid(family)
    loader = tiny_loader(model)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    operators = fit(model, loader, KroneckerGGN())
    for block in discover(model):
        operator = operators[block.name]
        trace = exact[block.name].trace()
        assert abs(operator.trace() - trace) < tolerance * trace
        if 1 in block.shape:
            assert relative_error(operator.dense(), exact[block.name]) < tolerance, block.name


def test_kronecker_is_exact_in_both_partial_traces():
    model = hybrid()
    loader = tiny_loader(model)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    operators = fit(model, loader, KroneckerGGN())
    for block in discover(model):
        p, q = block.shape
        H = exact[block.name].reshape(p, q, p, q)
        estimate = operators[block.name].dense().reshape(p, q, p, q)
        for partial in ("aibi->ab", "iaib->ab"):
            error = relative_error(torch.einsum(partial, estimate), torch.einsum(partial, H))
            assert error < 1e-10, block.name


def test_kronecker_is_exact_for_one_datum_with_one_direction():
    # Two classes, one position: one gradient of rank one a block.
    model, loader = mlp(3, 4, 2), pairs((1, 3), 2, batches=1)
    exact = dense_ggn(model, discover(model), loader, Categorical())
    for name, operator in fit(model, loader, KroneckerGGN()).items():
        assert relative_error(operator.dense(), exact[name]) < 1e-12, name


def test_kronecker_is_exact_for_a_linear_model_with_squared_error():
    model, loader = linear(3, 2), targets((6, 3), 2)
    exact = dense_ggn(model, discover(model), loader, Gaussian(0.5))
    operator = fit(model, loader, KroneckerGGN(), Gaussian(0.5))["weight"]
    assert relative_error(operator.dense(), exact["weight"]) < 1e-12


def observation(*gradients):
    """An observation of given per-sample gradients `(p, q)`."""
    stacked = torch.stack(gradients)
    unit = torch.eye(stacked.shape[1], dtype=stacked.dtype).expand(len(stacked), -1, -1)
    return Observation(unit, stacked)


def a_block(p, q):
    return Block("w", Kind.OTHER, "w", "", MatrixView((p, q)), observe_weight)


def test_kronecker_factors_by_hand():
    accumulator = KroneckerGGN().accumulator(a_block(2, 3))
    first = torch.tensor([[1.0, 0, 2], [0, 1, 0]]).double()
    second = torch.tensor([[0.0, 3, 0], [1, 0, 0]]).double()
    accumulator.add(observation(first))
    accumulator.add(observation(second))
    left = torch.tensor([[5.0 + 9, 0], [0, 1 + 1]]).double()
    right = torch.tensor([[1.0 + 1, 0, 2], [0, 1 + 9, 0], [2, 0, 4]]).double()
    expected = torch.kron(left, right) / 16
    assert torch.allclose(accumulator.finish().dense(), expected)


def test_kronecker_of_vanishing_gradients_is_zero_and_finite():
    accumulator = KroneckerGGN().accumulator(a_block(2, 3))
    accumulator.add(observation(torch.zeros(2, 3).double()))
    assert bool((accumulator.finish().dense() == 0).all())


@pytest.mark.parametrize(("n_positions", "by_position"), [(1, True), (5, True), (60, False)])
def test_factors_by_positions_are_those_by_gradients(n_positions, by_position, monkeypatch):
    generator, (p, q) = torch.Generator().manual_seed(0), (40, 30)
    sides = [
        [torch.randn(4, n_positions, d, generator=generator, dtype=torch.float64) for d in (p, q)]
        for _ in range(2)
    ]
    gradients = torch.cat([rows.mT @ columns for rows, columns in sides])
    left = torch.einsum("npq,nrq->pr", gradients, gradients)
    right = torch.einsum("npq,npr->qr", gradients, gradients)
    if by_position:
        monkeypatch.setattr(Observation, "gradient", lambda _: pytest.fail("a gradient was made"))
    accumulator = KroneckerGGN().accumulator(a_block(p, q))
    for rows, columns in sides:
        accumulator.add(Observation(rows, columns))
    found = accumulator.finish()
    assert torch.allclose(found.left * left.trace().sqrt(), left, rtol=1e-10)
    assert torch.allclose(found.right * left.trace().sqrt(), right, rtol=1e-10)


@pytest.mark.parametrize("structure", [KroneckerGGN(), DiagonalGGN(), DenseGGN(), KFAC()], ids=repr)
def test_finishing_before_any_data_is_an_error(structure):
    with pytest.raises(RuntimeError, match="before any add"):
        structure.accumulator(a_block(2, 3)).finish()


def total_error(model, loader, estimator, likelihood=Categorical()):
    """Relative Frobenius error over all blocks together."""
    exact = dense_ggn(model, discover(model), loader, likelihood)
    operators = fit(model, loader, estimator, likelihood)
    wrong = sum(float((operators[n].dense() - H).square().sum()) for n, H in exact.items())
    return (wrong / sum(float(H.square().sum()) for H in exact.values())) ** 0.5


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_known_limit_kronecker_is_not_exact_but_closer_than_kfac(family):
    model = hybrid(family)
    loader = tiny_loader(model)
    kronecker = total_error(model, loader, KroneckerGGN())
    classical = min(total_error(model, loader, KFAC(reduce=reduce)) for reduce in (False, True))
    assert 0.01 < kronecker < classical


def test_a_known_limit_one_matrix_of_rank_two_is_no_kronecker_product():
    gradient = torch.eye(2).double()
    accumulator = KroneckerGGN().accumulator(a_block(2, 2))
    accumulator.add(observation(gradient))
    exact = torch.outer(gradient.flatten(), gradient.flatten())
    assert relative_error(accumulator.finish().dense(), exact) > 0.5


# ---------------------------------------------------------------- K-FAC in its regimes


@pytest.mark.parametrize("reduce", [False, True])
def test_kfac_is_exact_for_one_datum_at_one_position(reduce):
    model, loader = mlp(3, 4, 3), pairs((1, 3), 3, batches=1)
    assert total_error(model, loader, KFAC(reduce)) < 1e-12


@pytest.mark.parametrize("reduce", [False, True])
def test_kfac_is_exact_for_a_deep_linear_net_with_squared_error(reduce):
    model = torch.nn.Sequential(linear(3, 4), linear(4, 3), linear(3, 2))
    assert total_error(model, targets((6, 3), 2), KFAC(reduce), Gaussian()) < 1e-12


def deep_linear():
    return torch.nn.Sequential(linear(3, 4), linear(4, 2, seed=1))


def test_kfac_expand_is_exact_where_every_position_has_outputs_of_its_own():
    model, loader = PerPosition(deep_linear()), targets((6, 5, 3), 10)
    assert total_error(model, loader, KFAC(directions=Exact()), Gaussian()) < 1e-12
    assert total_error(model, loader, KFAC(reduce=True, directions=Exact()), Gaussian()) > 0.1


def test_kfac_reduce_is_exact_where_positions_are_averaged():
    model, loader = Pooled(deep_linear(), linear(2, 2)), targets((6, 5, 3), 2)
    assert total_error(model, loader, KFAC(reduce=True), Gaussian()) < 1e-12
    assert total_error(model, loader, KFAC(), Gaussian()) > 0.1


@pytest.mark.parametrize(
    "model", [PerPosition(deep_linear()), Pooled(deep_linear(), linear(2, 2))], ids=repr
)
def test_kronecker_needs_no_choice_between_expand_and_reduce(model):
    n_outputs = model(torch.zeros(1, 5, 3).double()).shape[1]
    loader = targets((6, 5, 3), n_outputs)
    assert total_error(model, loader, KroneckerGGN(Exact()), Gaussian()) < 1e-12


# ---------------------------------------------------------------- padding


def padded(batch, extra):
    """The same rows with more padding."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    more = torch.ones(len(ids), extra, dtype=torch.long)  # PAD
    return {
        **batch,
        "input_ids": torch.cat([ids, more], 1),
        "attention_mask": torch.cat([mask, 0 * more], 1),
    }


def padding_error(estimator):
    model = hybrid()
    loader = tiny_loader(model)
    plain = fit(model, loader, estimator)
    more = fit(model, [padded(batch, 12) for batch in loader], estimator)
    return max(relative_error(more[name].dense(), plain[name].dense()) for name in plain)


@pytest.mark.parametrize("estimator", [KroneckerGGN(), DiagonalGGN(), DenseGGN()], ids=repr)
def test_more_padding_changes_nothing(estimator):
    assert padding_error(estimator) < 1e-10


def test_a_known_limit_padding_changes_kfac():
    assert padding_error(KFAC()) > 0.1


# ---------------------------------------------------------------- empirical Fisher


def test_empirical_fisher_is_the_sum_of_outer_products_of_loss_gradients():
    model = hybrid()
    loader = tiny_loader(model)
    blocks, likelihood = discover(model), Categorical()
    rows = [loss_gradients(model, blocks, batch, likelihood) for batch in loader]
    for name, operator in fit(model, loader, DenseGGN(directions=EmpiricalFisher())).items():
        flat = torch.cat([batch[name] for batch in rows]).flatten(1)
        assert relative_error(operator.dense(), flat.T @ flat) < 1e-10, name


@pytest.mark.parametrize(("p", "q"), [(300, 4), (4, 300), (24, 24)])
def test_single_precision_loses_nothing_over_many_batches(p, q):
    block = Block("w", Kind.LORA, "w", "", MatrixView((p, q)), observe_weight)
    sums = KroneckerGGN().accumulator(block)
    generator, exact = seeded(0), [torch.zeros(size, size).double() for size in (p, q)]
    for _ in range(300):
        gradient = 0.3 + torch.randn(8, p, q, generator=generator).float()
        sums.add(Observation.of_gradient(gradient))
        exact[0] += torch.einsum("npq,nrq->pr", gradient.double(), gradient.double())
        exact[1] += torch.einsum("npq,npr->qr", gradient.double(), gradient.double())
    for found, wanted in zip(sums.sums().values(), exact, strict=True):
        assert relative_error(found.double(), wanted) < 2e-5
