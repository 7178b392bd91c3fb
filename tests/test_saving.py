"""A posterior on disk: exactly the same when loaded, whole or not at all, and of its own model."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    Bernoulli,
    DenseGGN,
    DiagonalGGN,
    FixedPrecision,
    Gaussian,
    HybridConfig,
    Linearized,
    MonteCarlo,
    Sampled,
    bayesianize,
    saving,
)
from posthoc_bhpeft.curvature import KroneckerGGN
from posthoc_bhpeft.errors import CheckpointError, ConfigError, ModelError
from posthoc_bhpeft.folders import PENDING, SCRATCH, STALE_SECONDS
from posthoc_bhpeft.linalg import OperatorSum
from posthoc_bhpeft.prior import GaussianPrior
from tests.hybrid.families import tiny_batch, tiny_loader, tiny_model
from tests.models import mlp, pairs, randomize, seeded, targets, wrap
from tests.tuned import LABELS, assert_same, base_folder, fitted, numbers, plain_lora, tuned


@pytest.fixture(scope="module")
def bayes() -> BayesianPeft:
    return fitted()


@pytest.fixture
def saved(bayes: BayesianPeft, tmp_path: Path) -> Path:
    bayes.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


MODELS: dict[str, Callable[[], Any]] = {
    "hybrid BERT": tuned,
    "hybrid Llama": lambda: tuned("llama"),
    "plain LoRA": lambda: tuned(config=plain_lora()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_rebuilt_model_predicts_the_same(name: str, tmp_path: Path) -> None:
    before = fitted(MODELS[name]())
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert_same(numbers(before), numbers(after))
    assert before.saved.reason == after.saved.reason
    assert before.explain() == after.explain()


CHILD = """
import sys, torch
from posthoc_bhpeft import BayesianPeft
from tests.tuned import numbers
for folder in sys.argv[1:]:
    bayes = BayesianPeft.from_pretrained(folder)
    torch.save(numbers(bayes), folder + ".pt")
    print(bayes.model.config.id2label)
"""


def test_another_process_rebuilds_the_same(tmp_path: Path) -> None:
    fits = {
        str(tmp_path / str(index)): fitted(make()) for index, make in enumerate(MODELS.values())
    }
    for folder, before in fits.items():
        before.save_pretrained(folder)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *fits],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == [str(LABELS)] * len(fits)
    for folder, before in fits.items():
        assert_same(numbers(before), torch.load(f"{folder}.pt"))


def test_a_model_may_be_given(bayes: BayesianPeft, saved: Path) -> None:
    after = BayesianPeft.from_pretrained(saved, model=bayes.model)
    assert after.model is bayes.model
    assert_same(numbers(bayes), numbers(after))


@pytest.mark.parametrize("curvature", [DiagonalGGN(), DenseGGN(), KroneckerGGN()], ids=repr)
def test_every_structure_survives(curvature: Any, tmp_path: Path) -> None:
    model, loader = mlp(4, 3, 3), pairs((6, 4), 3)
    before = bayesianize(model, loader, curvature=curvature, progress=False)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=model)
    assert after.curvature == curvature
    assert torch.equal(
        before.predict(loader[0]).probabilities, after.predict(loader[0]).probabilities
    )


@pytest.mark.parametrize("predictive", [MAP(), Sampled(3), Linearized(MonteCarlo(9))], ids=repr)
def test_settings_survive(predictive: Any, tmp_path: Path) -> None:
    model, loader = mlp(4, 3, 3), pairs((6, 4), 3)
    before = bayesianize(model, loader, predictive=predictive, progress=False)
    before.save_pretrained(tmp_path)
    assert BayesianPeft.from_pretrained(tmp_path, model=model).predictive == predictive
    other = BayesianPeft.from_pretrained(tmp_path, model=model, predictive=MAP())
    assert other.predictive == MAP()


def test_a_prior_mean_survives(bayes: BayesianPeft, tmp_path: Path) -> None:
    means = {block.name: torch.full(block.shape, 0.1).double() for block in bayes.blocks[:2]}
    prior = GaussianPrior(bayes.posterior.prior.precision, means)
    before = BayesianPeft(
        bayes.model,
        bayes.posterior.with_prior(prior),
        bayes.likelihood,
        bayes.predictive,
        bayes.curvature,
        "",
    )
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=bayes.model)
    assert after.log_marginal_likelihood() == before.log_marginal_likelihood()
    assert after.posterior.prior.mean.keys() == means.keys()


def chained(model: Any, rounds: int = 2, max_terms: int = 2) -> BayesianPeft:
    """A posterior whose prior is the one before, `rounds` times over; the model moves each time."""
    bayes = fitted(model)
    for index in range(1, rounds):
        later = copy.deepcopy(bayes.model)
        randomize(later, 0.05, seed=index)
        bayes = fitted(later, prior=bayes.as_prior(max_terms=max_terms))
    return bayes


def operators(bayes: BayesianPeft) -> dict[str, torch.Tensor]:
    """All tensors of curvature, prior and bases."""
    found, posterior = {}, bayes.posterior
    for place, values in (("h", posterior.curvature), ("k", posterior.prior.carried)):
        for name, operator in values.items():
            found |= {f"{place}/{name}/{n}": t for n, t in operator.tensors().items()}
    for name, basis in posterior.bases.items():
        found[f"values/{name}"] = basis.eigenvalues
        found[f"vectors/{name}"] = basis.left_vectors
        found[f"volume/{name}"] = torch.tensor(basis.log_volume, dtype=torch.float64)
    found |= {f"mean/{name}": mean for name, mean in posterior.prior.mean.items()}
    return dict(sorted(found.items()))


@pytest.mark.parametrize(("rounds", "max_terms"), [(2, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_a_chained_posterior_survives(
    name: str, rounds: int, max_terms: int, tmp_path: Path
) -> None:
    before = chained(MODELS[name](), rounds, max_terms)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert_same(operators(before), operators(after))
    assert_same(numbers(before), numbers(after))
    assert after.posterior.prior.merge_errors == before.posterior.prior.merge_errors
    assert bool(after.posterior.prior.merge_errors) == (rounds - 1 > max_terms)
    assert after.explain() == before.explain()
    # The next link of the chain is the same from either.
    one, other = before.as_prior(), after.as_prior()
    assert one.merge_errors == other.merge_errors
    shifted = randomize(copy.deepcopy(before.model), 0.1, seed=9)
    assert torch.equal(one.penalty(shifted), other.penalty(shifted))


def test_a_chained_posterior_in_single_precision_survives(tmp_path: Path) -> None:
    before = chained(tuned(dtype=torch.float32).float(), 3)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert_same(operators(before), operators(after))
    assert_same(numbers(before), numbers(after))


@pytest.mark.parametrize("curvature", [DiagonalGGN(), DenseGGN(), KroneckerGGN()], ids=repr)
def test_every_structure_is_carried(curvature: Any, tmp_path: Path) -> None:
    model, loader = mlp(4, 3, 3), pairs((6, 4), 3)
    first = bayesianize(model, loader, curvature=curvature, progress=False)
    later = randomize(copy.deepcopy(model), 0.1)
    before = bayesianize(later, loader, curvature=curvature, prior=first.as_prior(), progress=False)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=later)
    assert after.log_marginal_likelihood() == before.log_marginal_likelihood()
    covariances = [bayes.predict(loader[0]).covariance for bayes in (before, after)]
    assert torch.equal(*covariances)


def test_curvature_in_one_term_comes_back_as_it_was(tmp_path: Path) -> None:
    """A sum of one term, or a term that is no sum: told apart by the names of their tensors."""
    bayes = fitted()
    sums = {name: OperatorSum((o,)) for name, o in bayes.posterior.curvature.items()}
    posterior = replace(bayes.posterior, curvature=sums)
    prior = GaussianPrior(posterior.prior.precision, {}, bayes.posterior.curvature, bayes.blocks)
    before = replace(bayes, posterior=posterior.with_prior(prior))
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    name = bayes.blocks[0].name
    assert isinstance(after.posterior.curvature[name], OperatorSum)
    assert not isinstance(after.posterior.prior.carried[name], OperatorSum)
    assert_same(numbers(before), numbers(after))


def test_a_chained_posterior_loads_into_a_model_of_lower_precision(tmp_path: Path) -> None:
    before = chained(tuned(), 3)
    before.save_pretrained(tmp_path)
    model = tuned()
    model.load_state_dict(before.model.state_dict())
    after = BayesianPeft.from_pretrained(tmp_path, model=model.float())
    batch = tiny_loader(model, 1)[0]
    expected = before.predict(batch).probabilities
    assert torch.allclose(after.predict(batch).probabilities.double(), expected, atol=1e-4)
    assert after.log_marginal_likelihood() == pytest.approx(before.log_marginal_likelihood(), 1e-4)
    assert after.as_prior().penalty(model).dtype == torch.float32


CARRIED_EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown": lambda entry: entry.update(carried="Tucker"),
    "another structure": lambda entry: entry.update(carried="DiagonalOperator"),
    "a term too few": lambda entry: entry.update(carried="KroneckerOperator"),
    "a term too many": lambda entry: entry.update(carried="+".join(["KroneckerOperator"] * 3)),
    "left out": lambda entry: entry.pop("carried"),
    "a number": lambda entry: entry.update(carried=2),
    "an error in words": lambda entry: entry.update(merge_error="small"),
}


@pytest.mark.parametrize("name", CARRIED_EDITS)
def test_an_edited_carried_structure_is_refused(name: str, tmp_path: Path) -> None:
    before = chained(MODELS["plain LoRA"](), 3)
    before.save_pretrained(tmp_path)
    edit_json(tmp_path, lambda r: CARRIED_EDITS[name](next(iter(r["blocks"].values()))))
    with pytest.raises(CheckpointError, match=r"[a-z]+ .*\.$"):
        BayesianPeft.from_pretrained(tmp_path, model=before.model)


def test_a_carried_structure_without_tensors_is_refused(saved: Path) -> None:
    edit_json(
        saved,
        lambda r: next(iter(r["blocks"].values())).update(carried="KroneckerOperator"),
    )
    with pytest.raises(CheckpointError, match="was edited"):
        BayesianPeft.from_pretrained(saved)


def test_the_format_is_the_second(saved: Path) -> None:
    record = json.loads((saved / "posterior.json").read_text())
    assert record["format_version"] == 2
    assert all("carried" not in entry for entry in record["blocks"].values())


def test_learnt_noise_survives(tmp_path: Path) -> None:
    model, loader = mlp(4, 3, 1), targets((6, 4), 1)
    before = bayesianize(model, loader, likelihood=Gaussian(), progress=False)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path, model=model)
    assert after.likelihood == before.likelihood
    assert after.log_marginal_likelihood() == before.log_marginal_likelihood()


def test_labels_problem_and_padding_are_kept(tmp_path: Path) -> None:
    model = tuned("llama")
    model.config.problem_type = "single_label_classification"
    model.config.pad_token_id = 1
    fitted(model).save_pretrained(tmp_path)
    config = BayesianPeft.from_pretrained(tmp_path).model.config
    assert config.id2label == LABELS
    assert config.label2id == {"bad": 0, "fair": 1, "good": 2}
    assert config.problem_type == "single_label_classification"
    assert config.pad_token_id == 1


def test_what_was_frozen_is_frozen_again(tmp_path: Path) -> None:
    model = tuned()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bhpeft_lora_B" in name)
    before = fitted(model)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    assert [b.name for b in after.blocks] == [b.name for b in before.blocks]
    assert_same(numbers(before), numbers(after))


def test_an_adapter_of_another_name(tmp_path: Path) -> None:
    model = tuned()
    config = HybridConfig(task_type="SEQ_CLS", r=2, bottleneck_size=4, num_virtual_tokens=3)
    model.add_adapter("mood", config)
    model.set_adapter("mood")
    model.double()
    before = fitted(model)
    before.save_pretrained(tmp_path)
    assert (tmp_path / "mood" / "adapter_config.json").is_file()
    assert_same(numbers(before), numbers(BayesianPeft.from_pretrained(tmp_path)))


def test_a_bfloat16_base_comes_back_as_it_was(tmp_path: Path) -> None:
    base = tiny_model("bert", dtype=torch.bfloat16)
    base.name_or_path = str(base_folder())
    model = get_peft_model(base, plain_lora())
    randomize(model)
    before = fitted(model)
    before.save_pretrained(tmp_path)
    after = BayesianPeft.from_pretrained(tmp_path)
    dtypes = {name: p.dtype for name, p in before.model.named_parameters()}
    assert len(set(dtypes.values())) == 2
    assert {name: p.dtype for name, p in after.model.named_parameters()} == dtypes
    assert_same(numbers(before), numbers(after))


def test_regression_and_several_answers(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "regression": Gaussian(0.5),
        "multi_label_classification": Bernoulli(),
    }
    for outputs, (problem, likelihood) in enumerate(kinds.items(), start=1):
        # The base was made for three classes, so its head is replaced.
        base = AutoModelForSequenceClassification.from_pretrained(
            base_folder(),
            num_labels=outputs,
            problem_type=problem,
            dtype=torch.float64,
            ignore_mismatched_sizes=True,
        )
        model = wrap(base, plain_lora())
        labels = torch.rand(4, outputs, generator=seeded(0), dtype=torch.float64)
        batch = {**tiny_batch(model, labels=False), "labels": labels}
        before = bayesianize(model, [batch], likelihood=likelihood, progress=False)
        before.save_pretrained(tmp_path / problem)
        after = BayesianPeft.from_pretrained(tmp_path / problem)
        assert after.model.config.problem_type == problem
        assert after.model.config.num_labels == outputs
        assert after.likelihood == likelihood
        assert torch.equal(before.predict(batch).covariance, after.predict(batch).covariance)


def test_a_model_without_adapter(tmp_path: Path) -> None:
    model = tiny_model("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    before = fitted(model)
    assert {block.kind.value for block in before.blocks} == {"head"}
    before.save_pretrained(tmp_path)
    assert_same(numbers(before), numbers(BayesianPeft.from_pretrained(tmp_path)))


class Foreign:
    """An operator of a user's own."""


def test_an_operator_without_a_file_format_is_refused(tmp_path: Path) -> None:
    model, loader = mlp(4, 3), pairs((6, 4), 3)
    bayes = bayesianize(model, loader, curvature=DiagonalGGN(), progress=False)
    name = bayes.blocks[0].name
    operators = {**bayes.posterior.curvature}
    operators[name] = Foreign()
    posterior = replace(bayes.posterior, curvature=operators)
    with pytest.raises(CheckpointError, match=r"is a Foreign.*Supported: KroneckerOperator"):
        replace(bayes, posterior=posterior).save_pretrained(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# --- whole or not at all ---------------------------------------------------------------------


@dataclass
class Failing:
    """Counts calls that change the disk, and fails at the k-th, or from it on."""

    at: int
    error: BaseException
    forever: bool = False
    count: int = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.forever and self.count > self.at):
                raise self.error
            return function(*args, **kwargs)

        return wrapped


def failing_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Failing:
    failing = Failing(step, OSError(28, "No space left on device (simulated)"))
    monkeypatch.setattr(os, "replace", failing.wrap(os.replace))
    monkeypatch.setattr(Path, "replace", failing.wrap(Path.replace))
    monkeypatch.setattr(Path, "mkdir", failing.wrap(Path.mkdir))
    monkeypatch.setattr(tempfile, "mkdtemp", failing.wrap(tempfile.mkdtemp))
    monkeypatch.setattr(tempfile, "mkstemp", failing.wrap(tempfile.mkstemp))
    monkeypatch.setattr(saving, "save_file", failing.wrap(saving.save_file))
    return failing


def hidden_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith("."))


def two_posteriors() -> tuple[BayesianPeft, BayesianPeft]:
    """Two trainings of one architecture: other weights, another prior."""
    return (
        fitted(tuned(seed=0), prior=FixedPrecision(1.0)),
        fitted(tuned(seed=1), prior=FixedPrecision(2.0)),
    )


def evidence_or_none(folder: Path) -> float | None:
    """Of the posterior in a folder, its model rebuilt; None where there is none at all."""
    if not (folder / "posterior.json").is_file() and not (folder / PENDING).is_dir():
        return None
    return BayesianPeft.from_pretrained(folder).log_marginal_likelihood()


@pytest.mark.parametrize("fresh", [True, False], ids=["new folder", "over an older one"])
def test_failing_at_any_step_leaves_the_old_or_the_new(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_posteriors()
    first, second = old.log_marginal_likelihood(), new.log_marginal_likelihood()
    seen = set()
    for step in range(1, 40):
        folder = tmp_path / str(step)
        if not fresh:
            old.save_pretrained(folder)
        with monkeypatch.context() as patch:
            failing = failing_at(step, patch)
            with suppress(CheckpointError):
                new.save_pretrained(folder)
                break
        found = evidence_or_none(folder)
        assert found in (None if fresh else first, second)
        assert not folder.is_dir() or hidden_files(folder) == []
        seen.add(found)
    assert failing.count < step, "every step was failed once"
    assert seen == {None if fresh else first, second}


def test_killed_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, but nothing is cleaned up: every later step fails as well."""
    old, new = two_posteriors()
    allowed = {old.log_marginal_likelihood(), new.log_marginal_likelihood()}
    seen = set()
    for step in range(1, 12):
        folder = tmp_path / str(step)
        old.save_pretrained(folder)
        with monkeypatch.context() as patch:
            killed = Failing(step, SystemExit("killed"), forever=True)
            patch.setattr(Path, "replace", killed.wrap(Path.replace))
            patch.setattr(shutil, "rmtree", killed.wrap(shutil.rmtree))
            with suppress(SystemExit):
                new.save_pretrained(folder)
                break
        seen.add(evidence_or_none(folder))
        new.save_pretrained(folder)
        assert evidence_or_none(folder) == new.log_marginal_likelihood()
    assert seen == allowed


def test_an_interrupted_save_in_a_read_only_folder_says_so(
    bayes: BayesianPeft, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("posthoc_bhpeft.folders.finish_replacing", lambda folder: None)
        bayes.save_pretrained(saved)
    assert (saved / PENDING).is_dir()

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(CheckpointError, match="Make the folder writable"):
            BayesianPeft.from_pretrained(saved)
    BayesianPeft.from_pretrained(saved)
    assert hidden_files(saved) == []


def test_what_a_killed_process_left_is_swept_up(bayes: BayesianPeft, saved: Path) -> None:
    for name, age in (("old", 2 * STALE_SECONDS), ("young", 0)):
        left = saved / f"{SCRATCH}{name}"
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    bayes.save_pretrained(saved)
    assert hidden_files(saved) == [f"{SCRATCH}young"]


def test_saving_twice_leaves_one_of_everything(bayes: BayesianPeft, saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    bayes.save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == names
    assert names == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "posterior.json",
        "posterior.safetensors",
    ]


def test_a_place_that_cannot_be_written_to(bayes: BayesianPeft, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="Choose a folder you may write to"):
        bayes.save_pretrained(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(bayes: BayesianPeft, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="Choose a folder you may write to"):
            bayes.save_pretrained(tmp_path)
    finally:
        tmp_path.chmod(0o755)


# --- damaged, foreign, newer -----------------------------------------------------------------


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "posterior.json").read_text())
    change(record)
    (folder / "posterior.json").write_text(json.dumps(record))


def test_truncated_tensors(saved: Path) -> None:
    path = saved / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"damaged or cut off.*Copy it again"):
        BayesianPeft.from_pretrained(saved)


def test_truncated_adapter(saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        BayesianPeft.from_pretrained(saved)


def test_truncated_json(saved: Path) -> None:
    path = saved / "posterior.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        BayesianPeft.from_pretrained(saved)


@pytest.mark.parametrize("name", ["posterior.json", "posterior.safetensors", "adapter_config.json"])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        BayesianPeft.from_pretrained(saved)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no blocks": lambda record: record.pop("blocks"),
    "a block a number": lambda record: record["blocks"].update(dict.fromkeys(record["blocks"], 3)),
    "model a list": lambda record: record.update(model=[1]),
    "blocks a list": lambda record: record.update(blocks=[1, 2]),
    "no likelihood": lambda record: record.pop("likelihood"),
    "precision a word": lambda record: next(iter(record["blocks"].values())).update(
        prior_precision="wide"
    ),
    "precision negative": lambda record: next(iter(record["blocks"].values())).update(
        prior_precision=-1.0
    ),
    "unknown structure": lambda record: next(iter(record["blocks"].values())).update(
        structure="Tucker"
    ),
    "unknown predictive": lambda record: record.update(predictive={"type": "Oracle"}),
    "predictive with a new field": lambda record: record["predictive"].update(depth=3),
    "hash": lambda record: record.update(sha256="0" * 64),
    "rows a word": lambda record: record.update(n_rows="many"),
}

NONSENSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "likelihood null": lambda record: record.update(likelihood=None),
    "likelihood of another role": lambda record: record.update(likelihood=record["predictive"]),
    "predictive null": lambda record: record.update(predictive=None),
    "label no number": lambda record: record["model"].update(id2label={"x": "bad"}),
    "labels a list": lambda record: record["model"].update(id2label=["bad", "good"]),
    "dtype unknown": lambda record: record["model"].update(dtype="nope"),
    "dtype no dtype": lambda record: record["model"].update(dtype="nn"),
    "trained dtype unknown": lambda record: record["model"].update(trained_dtype="nope"),
    "task a list": lambda record: record["model"].update(task=[]),
    "task without a type": lambda record: record["model"].update(task={"type": [1]}),
    "quantization a word": lambda record: record["model"].update(quantization="4bit"),
}


@pytest.mark.parametrize("rebuilt", [True, False], ids=["rebuilt", "given"])
@pytest.mark.parametrize("name", EDITS)
def test_edited_json(name: str, rebuilt: bool, bayes: BayesianPeft, saved: Path) -> None:
    edit_json(saved, EDITS[name])
    with pytest.raises((CheckpointError, ConfigError), match=r"[a-z]+ .*\.$"):
        BayesianPeft.from_pretrained(saved, model=None if rebuilt else bayes.model)


@pytest.mark.parametrize("rebuilt", [True, False], ids=["rebuilt", "given"])
@pytest.mark.parametrize("name", NONSENSE)
def test_json_that_makes_no_sense_is_named(
    name: str, rebuilt: bool, bayes: BayesianPeft, saved: Path
) -> None:
    edit_json(saved, NONSENSE[name])
    with pytest.raises(CheckpointError, match=r"posterior\.json does not make sense: .*save"):
        BayesianPeft.from_pretrained(saved, model=None if rebuilt else bayes.model)


def test_a_newer_format(saved: Path) -> None:
    edit_json(saved, lambda record: record.update(format_version=99))
    with pytest.raises(CheckpointError, match=r"format version 99.*Update the package"):
        BayesianPeft.from_pretrained(saved)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        BayesianPeft.from_pretrained(tmp_path / "nowhere")


def test_a_name_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> str:
        raise OSError("404 Client Error.\nA long story.")

    monkeypatch.setattr("posthoc_bhpeft.rebuild.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"'me/typo'.*404 Client Error\.$"):
        BayesianPeft.from_pretrained("me/typo")


def test_a_posterior_without_a_model_beside_it(tmp_path: Path) -> None:
    bayesianize(mlp(4, 3), pairs((6, 4), 3), progress=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither an adapter.*model=model"):
        BayesianPeft.from_pretrained(tmp_path)


def test_an_adapter_that_names_no_base(saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (saved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"base=.*model="):
        BayesianPeft.from_pretrained(saved)


def test_a_model_of_other_shapes(saved: Path) -> None:
    other = tuned(config=HybridConfig(task_type="SEQ_CLS", r=3, bottleneck_size=4))
    with pytest.raises(CheckpointError, match=r"belongs to another model.*saved.*model"):
        BayesianPeft.from_pretrained(saved, model=other)


def test_an_adapter_of_the_same_shapes(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="another adapter of the same shape"):
        BayesianPeft.from_pretrained(saved, model=tuned(seed=5))


def test_another_base_model_under_the_same_adapter(bayes: BayesianPeft, saved: Path) -> None:
    other = tuned()
    other.load_state_dict(bayes.model.state_dict())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "attention" in name and not parameter.requires_grad:
                parameter.add_(0.1)
    with pytest.raises(CheckpointError, match="frozen tensor"):
        BayesianPeft.from_pretrained(saved, model=other)


def test_the_smallest_step_of_training_is_noticed(saved: Path, bayes: BayesianPeft) -> None:
    model = tuned()
    model.load_state_dict(bayes.model.state_dict())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0].mul_(1 + 1e-9)
    with pytest.raises(CheckpointError, match="trained on since"):
        BayesianPeft.from_pretrained(saved, model=model)


def test_a_posterior_loads_into_a_model_of_lower_precision(
    bayes: BayesianPeft, saved: Path
) -> None:
    model = tuned()
    model.load_state_dict(bayes.model.state_dict())
    after = BayesianPeft.from_pretrained(saved, model=model.float())
    batch = tiny_loader(model, 1)[0]
    expected = bayes.predict(batch).probabilities
    assert torch.allclose(after.predict(batch).probabilities.double(), expected, atol=1e-5)


def test_a_changed_model_is_not_saved(tmp_path: Path) -> None:
    bayes = fitted()
    with torch.no_grad():
        next(p for p in bayes.model.parameters() if p.requires_grad).add_(0.1)
    with pytest.raises(ModelError, match="changed after it was bayesianized"):
        bayes.save_pretrained(tmp_path / "out")


def test_the_base_may_be_named(saved: Path, tmp_path: Path, bayes: BayesianPeft) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base_folder(), moved)
    config = json.loads((saved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/gone/model"
    (saved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="/gone/model"):
        BayesianPeft.from_pretrained(saved)
    assert_same(numbers(bayes), numbers(BayesianPeft.from_pretrained(saved, base=str(moved))))


# --- model card and hub ----------------------------------------------------------------------


def test_the_card_shows_how_to_load(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert 'BayesianPeft.from_pretrained("saved")' in card
    assert "import posthoc_bhpeft" in card


def test_a_strangers_card_is_kept_and_the_section_replaced(
    bayes: BayesianPeft, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("# My model\n\nTrained with love.\n")
    bayes.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(text + "\nMore of mine.\n")
    bayes.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# My model\n\nTrained with love.\n")
    assert text.endswith("More of mine.\n")
    assert text.count("## Calibrated uncertainty") == 1


@dataclass
class FakeHub:
    """Records calls; keeps what was uploaded, as the hub would."""

    root: Path
    calls: list[str]

    def create_repo(self, repo_id: str, **_: Any) -> None:
        self.calls.append("create_repo")
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def file_exists(self, repo_id: str, name: str) -> bool:
        self.calls.append("file_exists")
        return (self.root / repo_id / name).is_file()

    def hf_hub_download(self, repo_id: str, name: str, local_dir: Path) -> None:
        self.calls.append("hf_hub_download")
        shutil.copy(self.root / repo_id / name, local_dir)

    def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> Any:
        self.calls.append("upload_folder")
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return type("Commit", (), {"commit_url": f"hub:{repo_id}"})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub", [])
    monkeypatch.setattr("posthoc_bhpeft.rebuild.HfApi", lambda token=None: fake)
    monkeypatch.setattr(
        "posthoc_bhpeft.rebuild.snapshot_download", lambda name: str(fake.root / name)
    )
    return fake


def test_push_and_load_from_the_hub(bayes: BayesianPeft, hub: FakeHub) -> None:
    assert bayes.push_to_hub("me/mood") == "hub:me/mood"
    assert hub.calls == ["create_repo", "file_exists", "upload_folder"]
    card = (hub.root / "me/mood/README.md").read_text()
    assert 'BayesianPeft.from_pretrained("me/mood")' in card
    assert_same(numbers(bayes), numbers(BayesianPeft.from_pretrained("me/mood")))


def test_a_card_on_the_hub_is_kept(bayes: BayesianPeft, hub: FakeHub) -> None:
    (hub.root / "me/mood").mkdir(parents=True)
    (hub.root / "me/mood/README.md").write_text("Written on the hub.\n")
    bayes.push_to_hub("me/mood")
    bayes.push_to_hub("me/mood")
    card = (hub.root / "me/mood/README.md").read_text()
    assert card.startswith("Written on the hub.")
    assert card.count("## Calibrated uncertainty") == 1


def test_a_hub_that_refuses(
    bayes: BayesianPeft, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"403 Forbidden.*hf auth login"):
        bayes.push_to_hub("you/theirs")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_is_where_it_is_loaded(saved: Path, bayes: BayesianPeft) -> None:
    after = BayesianPeft.from_pretrained(saved, device="cuda")
    assert all(mean.is_cuda for mean in after.posterior.mean.values())
    batch = tiny_loader(bayes.model, 1)[0]
    assert torch.allclose(
        after.predict(batch).probabilities.cpu(), bayes.predict(batch).probabilities
    )
