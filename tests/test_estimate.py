"""`estimate`: bytes against tensors, passes against calls, and an 8B model that is only shapes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaConfig

from posthoc_bhpeft import (
    MAP,
    Bernoulli,
    Categorical,
    DenseGGN,
    DiagonalGGN,
    FixedPrecision,
    Gaussian,
    HeldOut,
    KroneckerGGN,
    LeaveOneOut,
    Linearized,
    MatchedPrecision,
    Placed,
    RandomSigns,
    Sampled,
    Tokens,
    bayesianize,
    estimate,
)
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import Exact, Subsample, fit_curvature
from posthoc_bhpeft.errors import ConfigError, DataError, MemoryLimitError
from posthoc_bhpeft.saving import posterior_tensors
from posthoc_bhpeft.size import bytes_text
from posthoc_bhpeft.size.blocks import DECOMPOSING, BlockBytes, decomposing
from posthoc_bhpeft.size.choosing import choosing_bytes
from tests.hybrid.families import tiny_loader
from tests.models import Pooled, hybrid, linear, lora, mlp, pairs, posterior_of
from tests.tasks import tiny

LOADER = pairs((5, 3), 3)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "size.md"


def small():
    return mlp(3, 4, 3)


def llama(layers):
    """Llama 3's widths, LoRA of rank 8 on every linear layer; nothing is allocated."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_labels=4,
        pad_token_id=0,
    )
    peft = LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear")
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
        return get_peft_model(base, peft, low_cpu_mem_usage=True)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "curvature",
    [KroneckerGGN(), KroneckerGGN(rank=1, wide=4), DiagonalGGN(), DenseGGN()],
    ids=repr,
)
def test_bytes_at_rest_and_in_a_file_are_those_of_the_tensors(curvature):
    posterior = posterior_of(small(), LOADER, curvature=curvature)
    found = estimate(small(), LOADER, curvature=curvature)
    tensors = posterior_tensors(posterior)
    file = sum(t.nbytes for t in tensors.values())
    spectra = sum(b.eigenvalues.nbytes for b in posterior.bases.values())
    vectors = sum(
        side.nbytes
        for basis in posterior.bases.values()
        for side in vars(basis).values()
        if isinstance(side, torch.Tensor) and side is not basis.eigenvalues
    )
    # A side in low rank has its values and the rest beside its vectors, too small to count.
    small_change = 8 * 2 * 3 if curvature == KroneckerGGN(rank=1, wide=4) else 0
    assert found.saved == file - small_change
    assert found.resting == file - small_change + spectra + vectors


@pytest.mark.parametrize(
    "curvature", [KroneckerGGN(), KroneckerGGN(rank=1, wide=4), DiagonalGGN()], ids=repr
)
def test_bytes_while_summing_are_those_of_the_accumulators(curvature):
    model = small()
    found = estimate(model, LOADER, curvature=curvature)
    kept = 0
    for block, size in zip(discover(model), found.blocks, strict=True):
        accumulator = curvature.accumulator(block)
        kept += size.summing
        for side in (getattr(accumulator, "left", None), getattr(accumulator, "right", None)):
            kept -= getattr(side, "test", torch.empty(0)).nbytes
    sums = summed(model, curvature)
    traces = 8 * 3 if curvature == KroneckerGGN(rank=1, wide=4) else 0
    assert kept == sum(total.nbytes for total in sums) - traces


def summed(model, curvature):
    """Every sum of a fit over one batch."""
    found = []

    class Keeping:
        directions = curvature.directions

        def storage(self, block):
            return curvature.storage(block)

        def accumulator(self, block):
            accumulator = curvature.accumulator(block)
            finish = accumulator.finish

            def keep():
                found.extend(accumulator.sums().values())
                return finish()

            accumulator.finish = keep
            return accumulator

    fit_curvature(model, discover(model), LOADER[:1], Categorical(), Keeping())
    return found


def test_activations_grow_with_rows_and_not_with_weights():
    body = Pooled(linear(6, 5, bias=True), linear(5, 2, bias=True))
    found = estimate(body, pairs((7, 9, 6), 2)).work.batch
    assert (found.rows, found.positions, found.outputs) == (7, 9, (2,))
    # Kept: the input (which is the loader's) at both layers, nothing of the weights.
    assert found.activations == 7 * 8 * (9 * 6 + 5)
    assert found.cotangent(discover(body)) == 7 * 8 * 9 * 5
    assert found.cotangent(discover(body)[2:]) == 7 * 8 * 2


def test_half_precision_is_widened_beside_itself():
    model = torch.nn.Linear(6, 4, bias=False, dtype=torch.bfloat16)
    (batch, *_) = pairs((3, 6), 4)
    found = estimate(model, [(batch[0].bfloat16(), batch[1])])
    assert found.work.batch.cotangent(discover(model)) == 3 * 4 * (2 + 4)
    assert found.work.item == 4


def test_the_model_is_left_alone():
    model = lora()
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    estimate(model, tiny_loader(model))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


# ---------------------------------------------------------------- passes


def count_calls(run, model):
    """Forward and backward passes through the model while `run` runs."""
    calls = {"forward": 0, "backward": 0}
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        calls["backward"] += 1
        return grad(*args, **kwargs)

    def forward(*_):
        calls["forward"] += 1

    handle = model.register_forward_hook(forward)
    torch.autograd.grad = counted
    try:
        run()
    finally:
        torch.autograd.grad = grad
        handle.remove()
    return calls


@pytest.mark.parametrize(
    "curvature", [KroneckerGGN(), KroneckerGGN(Exact()), DiagonalGGN(RandomSigns(2))], ids=repr
)
def test_passes_of_a_fit_are_those_it_makes(curvature):
    model = small()
    fit = estimate(model, LOADER, curvature=curvature).passes[0]
    calls = count_calls(
        lambda: fit_curvature(model, discover(model), LOADER, Categorical(), curvature), model
    )
    assert calls["forward"] == fit.batches * fit.forward == 2
    # One more looks whether rows are kept apart.
    assert calls["backward"] == fit.batches * fit.backward + 1


@pytest.mark.parametrize("predictive", [Linearized(), Linearized(centred=False), MAP(), Sampled(3)])
def test_passes_of_a_prediction_are_those_it_makes(predictive):
    model = small()
    passes = estimate(model, LOADER, predictive=predictive).passes[2]
    posterior = posterior_of(model, LOADER)
    inputs = LOADER[0][0]
    calls = count_calls(lambda: predictive.predict(model, posterior, Categorical(), inputs), model)
    assert (calls["forward"], calls["backward"]) == (passes.forward, passes.backward)


@pytest.mark.parametrize(
    "rule", [LeaveOneOut(), MatchedPrecision(), FixedPrecision(2.0), HeldOut(LOADER)], ids=repr
)
def test_passes_of_a_prior_rule_are_those_it_makes(rule):
    model = small()
    fit, prior, _ = estimate(model, LOADER, prior=rule).passes
    calls = count_calls(lambda: bayesianize(model, LOADER, prior=rule, progress=False), model)
    expected = fit.batches * fit.backward + 1 + prior.batches * prior.backward
    assert calls["backward"] == expected
    assert prior.step == f"prior, {type(rule).__name__}"


@pytest.mark.parametrize("most", [2, 4, 100])
def test_passes_of_several_labels_are_as_many_as_answers_left_out(most):
    model, rule = small(), LeaveOneOut(max_answers=most)
    loader = [(one, torch.ones(len(one), 3).double()) for one, _ in LOADER]
    settings = {"likelihood": Bernoulli(), "prior": rule}
    fit, prior, _ = estimate(model, loader, **settings).passes
    calls = count_calls(lambda: bayesianize(model, loader, progress=False, **settings), model)
    expected = fit.batches * fit.backward + 1 + prior.batches * prior.backward
    assert calls["backward"] == expected


def test_comparing_rows_grows_with_their_square_and_is_done_on_the_processor():
    def told(rule):
        return choosing_bytes(estimate(small(), LOADER, prior=rule).work, 1)

    few, many = told(LeaveOneOut(max_rows=4)), told(LeaveOneOut(max_rows=8))
    assert many.comparing == 4 * few.comparing > 0
    assert many.kept == 2 * few.kept > 0
    assert many.peak(on_processor=True) == many.kept + max(many.passing, many.comparing)
    assert many.peak(on_processor=False) == many.passing
    assert told(MatchedPrecision()).kept == told(FixedPrecision(1.0)).kept == 0


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_rows_with_tokens_hidden_are_a_pass_of_their_own(hidden):
    model, rule = hybrid(), LeaveOneOut(hidden=hidden)
    loader = tiny_loader(model)
    fit, prior, _ = estimate(model, loader, prior=rule).passes
    calls = count_calls(lambda: bayesianize(model, loader, prior=rule, progress=False), model)
    expected = fit.batches * fit.backward + 1 + prior.batches * prior.backward
    assert calls["backward"] == expected
    assert prior.forward == (2 if hidden else 1)


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_in_regression_only_rows_with_tokens_hidden_are_read(hidden):
    model, rule = hybrid(num_labels=1), LeaveOneOut(hidden=hidden)
    loader = [{**one, "labels": one["labels"].double()[:, None]} for one in tiny_loader(model)]
    fit, prior, _ = estimate(model, loader, likelihood=Gaussian(), prior=rule).passes
    calls = count_calls(
        lambda: bayesianize(model, loader, likelihood=Gaussian(), prior=rule, progress=False), model
    )
    # With one output the pass that looks whether rows are apart is one more.
    expected = fit.batches * fit.backward + 1 + prior.batches * prior.backward
    assert calls["backward"] == expected
    assert prior.forward == (1 if hidden else 0)


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_of_words_some_that_are_visible_beside_hidden_ones_are_read(hidden):
    model = tiny.tuned("AutoModelForTokenClassification", "bert", tiny.hybrid("TOKEN_CLS"))
    batch, rule = tiny.prompts(6), LeaveOneOut(hidden=hidden)
    loader = [{**batch, "labels": batch["attention_mask"]}]
    fit, prior, _ = estimate(model, loader, likelihood=Tokens(), prior=rule).passes
    calls = count_calls(
        lambda: bayesianize(model, loader, likelihood=Tokens(), prior=rule, progress=False), model
    )
    expected = fit.batches * fit.backward + 1 + prior.batches * prior.backward
    assert calls["backward"] == expected
    assert prior.backward == (4 if hidden else 0)


def test_other_likelihoods_have_their_own_passes():
    loader = [(torch.ones(4, 3).double(), torch.ones(4, 3).double())]
    of_bernoulli = estimate(small(), loader, likelihood=Bernoulli()).passes
    assert [one.backward for one in of_bernoulli] == [3, 3, 3]
    of_gaussian = estimate(small(), loader, likelihood=Gaussian()).passes
    assert [one.batches for one in of_gaussian] == [1, 0, 1]


def test_a_subsample_is_fitted_on_its_rows():
    many = pairs((5, 3), 3, batches=8)
    fit = estimate(small(), many, curvature=Subsample(10)).passes[0]
    assert fit.batches == 2
    assert estimate(small(), many).passes[0].batches == 8


def test_a_rule_of_the_users_own_is_not_known():
    class Mine:
        def choose(self, fit):
            raise NotImplementedError

    found = estimate(small(), LOADER, prior=Mine(), predictive=Mine())
    assert [one.backward for one in found.passes] == [2, None, None]
    assert "unknown" in str(found)


# ---------------------------------------------------------------- what would be cheaper


def test_what_is_cheaper_is_cheaper_and_says_what_it_is():
    model = hybrid()
    found = estimate(model, tiny_loader(model), curvature=KroneckerGGN(wide=16))
    cheaper = {one.change: one for one in found.cheaper()}
    assert "DiagonalGGN()" in cheaper
    assert any(name.startswith("freeze the") for name in cheaper)
    for one in cheaper.values():
        assert one.peak < found.peak
        assert one.change in str(found)


def test_frozen_blocks_are_left_out_of_everything():
    model = hybrid()
    found = estimate(model, tiny_loader(model))
    one = next(o for o in found.cheaper() if o.change == "freeze the lora blocks")
    model.requires_grad_(True)
    for block in found.work.blocks:
        model.get_parameter(block.parameter).requires_grad_(block.kind.value != "lora")
    assert all(block.kind.value != "lora" for block in one.work.blocks)
    assert one.resting < found.resting


def test_placed_elsewhere_needs_little_here():
    model = llama(layers=1)
    found = estimate(model, curvature=Placed(KroneckerGGN()), batch_size=1, length=8)
    assert found.apart
    assert found.elsewhere > 5 * 2**30
    assert found.peak < 2 * 2**30
    assert "on the cpu" in str(found)


# ---------------------------------------------------------------- eight billion parameters


@pytest.fixture(scope="module")
def page():
    """What the code of docs/size.md leaves behind."""
    text = PAGE.read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(block, scope)
    return scope


def test_the_page_shows_what_its_code_prints(page):
    text = PAGE.read_text(encoding="utf-8")
    assert str(page["low"]) in text
    whole = page["whole"]
    assert f"{bytes_text(whole.peak)} beside the model, {bytes_text(whole.resting)} of it" in (
        " ".join(text.split())
    )


def test_eight_billion_parameters_by_shape_alone(page):
    whole, low = page["whole"], page["low"]
    assert whole.work.model_bytes == pytest.approx(15.1e9, rel=0.01)
    assert whole.n_weights == 20_971_520 + 4 * 4096
    assert not whole.fits(80 * 10**9)
    # 24.6 G numbers: six sides of 4096 and one of 14336 before, five kinds of them behind.
    narrow, middle, far = 1024**2, 4096**2, 14336**2
    sides = 32 * (6 * middle + far + 3 * middle + 2 * narrow + 2 * far + 14 * 64)
    assert whole.factor_phases["summing over the data"] == 4 * (sides + middle + 16)
    assert low.fits(80 * 10**9)
    assert low.resting < 2**30
    changes = [one.change for one in whole.cheaper()]
    assert changes[0] == "KroneckerGGN(rank=64)"
    assert low.passes[0].batches == 1250


# ---------------------------------------------------------------- refusals


def test_a_fit_that_will_not_fit_is_refused_with_the_table(monkeypatch):
    monkeypatch.setattr("posthoc_bhpeft.memory.available_memory", lambda device: 1000)
    with pytest.raises(MemoryLimitError) as raised:
        bayesianize(small(), LOADER, progress=False)
    text = str(raised.value)
    assert "1000 B are free on cpu" in text
    assert "0.weight 4 x 3" in text
    assert "DiagonalGGN()" in text
    assert "Not counted: the activations of a batch." in text


def test_low_rank_fits_where_whole_factors_do_not(monkeypatch):
    model, loader = mlp(200, 3), pairs((2, 200), 3)
    needed = max(estimate(model, loader).factor_phases.values())
    monkeypatch.setattr("posthoc_bhpeft.memory.available_memory", lambda device: needed - 1)
    with pytest.raises(MemoryLimitError):
        bayesianize(model, loader, progress=False)
    curvature = KroneckerGGN(rank=4, wide=100)
    assert bayesianize(model, loader, curvature=curvature, progress=False).posterior.n_rows == 4


def test_a_model_without_a_vocabulary_needs_a_loader():
    with pytest.raises(ConfigError, match=r"Sequential takes is not known.*estimate\(model, load"):
        estimate(small())


def test_an_empty_loader_is_refused():
    with pytest.raises(DataError, match="no batch"):
        estimate(small(), [])


def test_fits_asks_a_device_for_what_is_free(monkeypatch):
    found = estimate(small(), LOADER)
    for free, fits in ((found.peak, True), (found.peak - 1, False)):
        monkeypatch.setattr("posthoc_bhpeft.memory.available_memory", lambda _, free=free: free)
        assert found.fits("cpu") is fits
    total = found.peak + found.work.model_bytes
    assert (found.fits(total), found.fits(total - 1)) == (True, False)


@pytest.mark.parametrize(
    ("device", "threads", "sizes"),
    [
        ("cpu", 1, [(2000, 2000)]),
        ("cpu", 8, [(900, 900)] * 8),
        ("cpu", 2, [(2000, 2000)]),
        ("cuda", 8, [(2000, 2000)]),
    ],
)
def test_narrow_blocks_are_decomposed_at_once_on_a_processor(
    device: str, threads: int, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(p: int, q: int) -> BlockBytes:
        return BlockBytes("", None, (p, q), 0, DECOMPOSING * (p**2 + q**2), 0, 0)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    blocks = [block(8, 8), block(2000, 2000), *(block(900, 900) for _ in range(9))]
    expected = sum(block(*one).decomposing for one in sizes)
    assert decomposing(blocks, torch.device(device)) == expected
