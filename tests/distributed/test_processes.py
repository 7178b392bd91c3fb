"""Two real processes over gloo: the posterior of one process, whatever each holds of the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft import HeldOut, LeaveOneOut
from tests.distributed.cases import (
    DIVIDED,
    ESTIMATORS,
    ROWS,
    RULES,
    SEVERAL,
    fit,
    numbers,
    numbers_to_predict,
    regression,
    rows_of,
    several,
    several_labels,
    vectors,
    whole,
)
from tests.models import hybrid, mlp

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case run in two processes, once."""
    place = tmp_path_factory.mktemp("two processes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node=2", "-m", "tests.distributed.cases", str(place)]
    done = subprocess.run([*launcher, *script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process got, by group of cases."""
    return [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Tensor]]:
    return rows_of(hybrid())


@pytest.fixture(scope="module")
def alone(rows: list[Any]) -> dict[str, Tensor]:
    """The fit of one process."""
    return numbers(fit(whole(rows)))


@pytest.fixture(scope="module")
def predicted(rows: list[Any]) -> dict[str, Tensor]:
    """The predictions of one process."""
    prediction = fit(whole(rows)).predict_loader(whole(rows), progress=False)
    return {name: one for name, one in prediction.columns().items() if one is not None}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = value.equal(other[name]) if isinstance(value, Tensor) else value == other[name]
        assert same, name


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    """Relative to the largest number of each tensor."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not isinstance(value, Tensor):
            assert value == other[name], name
            continue
        gap = float((value.double() - other[name].double()).abs().max())
        assert gap <= tolerance * float(value.double().abs().max()), name


@pytest.mark.parametrize("name", DIVIDED)
def test_the_posterior_of_one_process(
    name: str, found: list[dict[str, Any]], alone: dict[str, Tensor]
) -> None:
    mine, other = (each["divided"][name] for each in found)
    assert_equal(mine, other)
    assert_close(alone, mine)
    assert int(mine["rows"]) == ROWS


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator(name: str, found: list[dict[str, Any]]) -> None:
    mine, other = (each["estimators"][name] for each in found)
    assert_equal(mine, other)
    alone = fit(whole(vectors()), mlp(20, 18, 3), curvature=ESTIMATORS[name])
    assert_close(numbers(alone), mine)


@pytest.mark.parametrize("name", sorted({*RULES} - {"some left out"}))
def test_every_rule(name: str, found: list[dict[str, Any]], rows: list[Any]) -> None:
    mine, other = (each["rules"][name] for each in found)
    assert_equal(mine, other)
    bayes = fit(whole(rows), prior=RULES[name])
    assert_close({**numbers(bayes), "predictive": repr(bayes.predictive)}, mine)


def test_a_rule_that_looks_at_some_rows_looks_at_those_of_both(
    found: list[dict[str, Any]], rows: list[Any]
) -> None:
    mine, other = (each["rules"]["some left out"] for each in found)
    assert_equal(mine, other)
    # Of four and three batches every second: the first and fifth, the second and sixth.
    batches = list(whole(rows))
    seen = [batches[place] for place in (0, 1, 4, 5)]
    bayes = fit(whole(rows), prior=Looking(seen))
    assert float(bayes.posterior.prior.precision[bayes.blocks[0].name]) == pytest.approx(
        float(mine["precision"][0]), rel=TOLERANCE
    )


class Looking(LeaveOneOut):
    """`LeaveOneOut` from given batches."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        object.__setattr__(self, "batches", batches)

    def choose(self, fit: Any) -> Any:
        from dataclasses import replace

        return super().choose(replace(fit, training=self.batches))


def test_held_out_rows_may_be_divided_too(found: list[dict[str, Any]], rows: list[Any]) -> None:
    mine, other = (each["rules"]["held out"] for each in found)
    assert_equal(mine, other)
    held_out = HeldOut(whole(rows_of(hybrid(), 7)))
    assert_close(numbers(fit(whole(rows), prior=held_out)), mine)


def test_single_precision(found: list[dict[str, Any]], rows: list[Any]) -> None:
    mine, other = (each["rules"]["single precision"] for each in found)
    assert_equal(mine, other)
    one = numbers(fit(whole(rows), hybrid().float()))
    assert_close(one, mine, tolerance=1e-5)


def test_a_learnt_noise(found: list[dict[str, Any]]) -> None:
    mine, other = (each["regression"] for each in found)
    assert_equal(mine, other)
    assert_close(regression(whole(numbers_to_predict())), mine)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels_a_row(name: str, found: list[dict[str, Any]]) -> None:
    mine, other = (each["several"][name] for each in found)
    assert_equal(mine, other)
    assert_close(several(whole(several_labels()), SEVERAL[name]), mine)


@pytest.mark.parametrize("name", DIVIDED)
def test_predictions_of_all_in_the_order_of_the_data(
    name: str, found: list[dict[str, Any]], predicted: dict[str, Tensor]
) -> None:
    mine, other = (each["predictions"][name] for each in found)
    assert_equal(mine, other)
    assert_close(predicted, mine)


def test_some_rows_stand_for_all(found: list[dict[str, Any]]) -> None:
    mine, other = (each["some rows"]["eight of 24"] for each in found)
    assert_equal(mine, other)
    assert int(mine["rows"]) == 24
    every = numbers(fit(whole(rows_of(hybrid(), 24)), prior=LeaveOneOut()))
    assert not torch.equal(mine["log likelihood"], every["log likelihood"])
    assert float(mine["log likelihood"] / every["log likelihood"]) == pytest.approx(1, abs=0.5)


def test_random_signs_of_two_processes_are_not_the_same(found: list[dict[str, Any]]) -> None:
    together, alone = found[0]["signs"]["together"], found[0]["signs"]["alone"]
    assert int(together["rows"]) == 2 * int(alone["rows"])
    lefts = [name for name in alone if name.endswith("/left")]
    assert lefts
    # A Kronecker factor holds the root of the trace: with the same signs, sqrt(2) times as much.
    assert not any(torch.allclose(together[n], 2**0.5 * alone[n], rtol=1e-6) for n in lefts)


def test_the_first_process_writes(found: list[dict[str, Any]], folder: Path) -> None:
    assert [each["saving"]["wrote"] for each in found] == [True, False]
    assert [each["saving"]["wrote alone"] for each in found] == [True, True]
    assert not (folder / "partial").exists()


def test_each_may_keep_its_sums_where_both_fit_the_whole(
    found: list[dict[str, Any]], folder: Path
) -> None:
    assert [each["saving"]["kept alone"] for each in found] == [["no error"], ["no error"]]
    assert not list((folder / "both alone").iterdir())


def test_the_page_runs(found: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(found):
        assert each["page"] == {
            "rows predicted": 60,
            "saved": True,
            "audited": rank == 0,
            "devices": ["cpu"],
        }


FAILURES = {
    "label": (1, "DataError", "out of range"),
    "first look": (1, "OSError", "the disk is gone"),
    "fit": (1, "OSError", "the disk is gone"),
    "prior": (1, "OSError", "the disk is gone"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_in_one_process_ends_both(name: str, found: list[dict[str, Any]]) -> None:
    rank, kind, text = FAILURES[name]
    own, other = found[rank]["errors"][name], found[1 - rank]["errors"][name]
    assert own.startswith(kind)
    assert text in own
    assert other == f"ProcessError: Process {rank} of 2 stopped, so all do. {own}"


REFUSED = {
    "other weights": ("ModelError", "Processes [1] hold other weights than process 0"),
    "no rows": ("DataError", "no labelled row: no batch at all"),
    "other seeds": ("DataError", "shuffle with different seeds"),
    "dispatched": ("ConfigError", "dispatch_batches=False"),
    "ddp": ("ModelError", "accelerator.unwrap_model(model)"),
    "fsdp": ("ModelError", "is sharded over processes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_both(name: str, found: list[dict[str, Any]]) -> None:
    for each in found:
        said = each["errors"][name]
        assert said.startswith(REFUSED[name][0])
        assert REFUSED[name][1] in said
