"""A fit that is killed goes on with the same numbers, or says why it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader

from posthoc_bhpeft import Categorical, DiagonalGGN, Resume
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import KFAC, DenseGGN, KroneckerGGN
from posthoc_bhpeft.curvature.partial import PartialFit
from posthoc_bhpeft.curvature.resuming import Probe
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.errors import CheckpointError, ConfigError, DataError
from tests.distributed.cases import fit, numbers, rows_of, whole
from tests.distributed.resumed import RANDOM
from tests.models import hybrid, lora, mlp, pairs, seeded

ROOT = Path(__file__).resolve().parent.parent.parent


class Interrupted(list[Any]):
    """Batches of which the fit gets only so many: the third of three passes has them all."""

    def __init__(self, batches: list[Any], n_batches: int) -> None:
        super().__init__(batches)
        self.n_batches, self.passes = n_batches, 0

    def __iter__(self) -> Any:
        self.passes += 1
        for place, batch in enumerate(super().__iter__()):
            if self.passes == 2 and place == self.n_batches:
                raise KeyboardInterrupt
            yield batch


def interrupt(model: Any, batches: list[Any], n_batches: int, resume: Resume, **settings: Any):
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(batches, n_batches), model, resume=resume, **settings)


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.resumed", str(tmp_path)]
    killed = subprocess.run([*command, "7"], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    (partial,) = (tmp_path / "partial").glob("*.safetensors")
    with safe_open(partial, framework="pt") as file:
        assert '"n_batches": 3' in file.metadata()["fit"]
    bayes = fit(
        whole(rows_of(hybrid())), curvature=RANDOM, resume=Resume(tmp_path / "partial", seconds=0)
    )
    assert not (tmp_path / "partial").exists()
    never = numbers(fit(whole(rows_of(hybrid())), curvature=RANDOM))
    found = numbers(bayes)
    assert found.keys() == never.keys()
    assert not [name for name, one in never.items() if not one.equal(found[name])]


@pytest.mark.parametrize(
    "estimator",
    [KFAC(), DenseGGN(), DiagonalGGN(), KroneckerGGN(rank=1, wide=4)],
    ids=repr,
)
@pytest.mark.parametrize("n_batches", [1, 3])
def test_every_estimator_goes_on(estimator: Any, n_batches: int, tmp_path: Path) -> None:
    model, batches = mlp(4, 5, 3), pairs((3, 4), 3, batches=4)
    resume = Resume(tmp_path / "fit", seconds=0)
    never = numbers(fit(batches, model, curvature=estimator))
    interrupt(model, batches, n_batches, resume, curvature=estimator)
    found = numbers(fit(batches, model, curvature=estimator, resume=resume))
    assert not [name for name, one in never.items() if not one.equal(found[name])]


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    model, batches = mlp(4, 5, 3), pairs((3, 4), 3, batches=4)
    resume = Resume(tmp_path, seconds=0)
    interrupt(model, batches, 3, resume)
    forwards: list[int] = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    fit(batches, model, resume=resume)
    handle.remove()
    assert len(forwards) == 2  # one to look at the labels, one for the batch that was left


def test_a_fit_that_ended_before_the_prior_was_chosen_is_not_done_again(tmp_path: Path) -> None:
    model, batches = mlp(4, 5, 3), pairs((3, 4), 3, batches=4)

    class Stopping:
        def choose(self, fit: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(batches, model, resume=Resume(tmp_path), prior=Stopping())
    forwards: list[int] = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    fit(batches, model, resume=Resume(tmp_path))
    handle.remove()
    assert len(forwards) == 1


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fit(pairs((3, 4), 3), mlp(4, 5, 3), resume=Resume(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def other_weights(model: Any) -> Any:
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    return model


CHANGED = {
    "weights": lambda model, batches: fit(batches, other_weights(model), resume=CHANGED_RESUME[0]),
    "curvature": lambda model, batches: fit(
        batches, model, curvature=KroneckerGGN(), resume=CHANGED_RESUME[0]
    ),
    "likelihood": lambda model, batches: fit(
        batches, model, likelihood=Odd(), resume=CHANGED_RESUME[0]
    ),
    "number of batches": lambda model, batches: fit(batches[:3], model, resume=CHANGED_RESUME[0]),
}
CHANGED_RESUME: list[Resume] = []


class Odd(Categorical):
    """Another likelihood by its name."""

    def __repr__(self) -> str:
        return "Odd()"


@pytest.mark.parametrize("name", CHANGED)
def test_another_fit_is_refused(name: str, tmp_path: Path) -> None:
    model, batches = mlp(4, 5, 3), pairs((3, 4), 3, batches=4)
    CHANGED_RESUME[:] = [Resume(tmp_path, seconds=0)]
    interrupt(model, batches, 2, CHANGED_RESUME[0])
    with pytest.raises(CheckpointError, match=rf"other {name}\. Go on with those, or remove"):
        CHANGED[name](model, batches)


def scaled(model: Any) -> None:
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            scaling.update({name: 2 * one for name, one in scaling.items()})


def flatter(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def moved_between_samples(model: Any) -> None:
    frozen = next(p for p in model.parameters() if not p.requires_grad and p.numel() > 64)
    with torch.no_grad():
        frozen.view(-1)[1] += 1e-6


def other_activation(model: Any) -> None:
    for layer in model.base_model.model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()


FUNCTIONS: dict[str, tuple[str, Any]] = {
    "scaling": (r"other scalings or epsilons\.", scaled),
    "epsilon": (r"other scalings or epsilons\.", flatter),
    "one frozen number": (r"other weights\.", moved_between_samples),
    "activation": (r"another model: its weights are the same.*or remove", other_activation),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_another_function_of_the_same_trained_weights_is_refused(name: str, tmp_path: Path) -> None:
    model, resume = lora(), Resume(tmp_path, seconds=0)
    batches = list(whole(rows_of(model, 8)))
    interrupt(model, batches, 2, resume)
    message, change = FUNCTIONS[name]
    change(model)
    with pytest.raises(CheckpointError, match=message):
        fit(batches, model, resume=resume)


def random(seed: int) -> dict[str, Any]:
    return {"curvature": RANDOM, "generator": seeded(seed)}


OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "products too": ("products", {}, {"products": True}),
    "no products": ("products", {"products": True}, {}),
    "seed": (r"random signs \(the seed\)", random(0), random(7)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_and_another_seed_are_refused(name: str, tmp_path: Path) -> None:
    model, resume = lora(), Resume(tmp_path, seconds=0)
    batches = list(whole(rows_of(model, 8)))
    what, first, second = OTHERS[name]
    interrupt(model, batches, 2, resume, **first)
    with pytest.raises(CheckpointError, match=rf"other {what}\. Go on with those"):
        fit(batches, model, resume=resume, **second)


def test_products_go_on(tmp_path: Path) -> None:
    model, resume = lora(), Resume(tmp_path, seconds=0)
    batches = list(whole(rows_of(model, 8)))
    interrupt(model, batches, 2, resume, products=True)
    found = numbers(fit(batches, model, resume=resume, products=True))
    never = numbers(fit(batches, model, products=True))
    assert not [name for name, one in never.items() if not one.equal(found[name])]


def test_sums_of_other_blocks_are_refused() -> None:
    model = mlp(4, 5, 3)
    fit_of = PartialFit.empty(model, DiagonalGGN(), discover(model))
    first, *others = fit_of.sums
    total = {(name, "total"): torch.zeros(1) for name in fit_of.sums}
    with pytest.raises(CheckpointError, match=r"1 blocks or products.*'other' of the sums alone"):
        fit_of.restore({**total, ("other", "total"): torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"{first}' of this fit alone.*products="):
        fit_of.restore({(name, "total"): torch.zeros(1) for name in others})


def test_outputs_are_known_again_up_to_rounding() -> None:
    outputs = torch.randn(40, 30, generator=seeded())
    probe = Probe.of({"x": outputs}, outputs)
    assert len(probe.outputs) == 256
    assert probe.agrees(Probe.of(0, outputs.bfloat16()).outputs)
    assert not probe.agrees(Probe.of(0, outputs.roll(1, 0)).outputs)
    assert not probe.agrees(Probe.of(0, 1.2 * outputs).outputs)
    assert not probe.agrees(Probe.of(0, outputs[:2]).outputs)
    assert Probe().agrees(Probe().outputs)


def test_a_file_for_each_process_that_fits_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = pairs((3, 4), 3), mlp(4, 5, 3)
    places = []
    for rank in (0, 1):
        running = Processes(rank, 2)
        monkeypatch.setattr(Processes, "running", classmethod(lambda cls, one=running: one))
        places.append(Resume(tmp_path / "fit").open({}, Processes()).path)
        fit(*fits, resume=Resume(tmp_path / "fit", seconds=0))
    # The first writes where a process without others would go on.
    assert [path.name for path in places] == [
        "partial-0-of-1.safetensors",
        "partial-alone-1.safetensors",
    ]
    # Another process may be about to write, so that the folder stays.
    assert (tmp_path / "fit").is_dir()
    assert not list((tmp_path / "fit").iterdir())


def test_other_batches_are_refused(tmp_path: Path) -> None:
    model, batches = mlp(4, 5, 3), pairs((3, 4), 3, batches=4)
    resume = Resume(tmp_path, seconds=0)
    interrupt(model, batches, 2, resume)
    swapped = [batches[1], batches[0], *batches[2:]]
    with pytest.raises(DataError, match=r"other batches.*another order.*shuffle=False"):
        fit(swapped, model, resume=resume)
    # What is still to come may be in any order: nothing was summed of it.
    fit([*batches[:2], batches[3], batches[2]], model, resume=resume)


def test_a_shuffled_loader_goes_on_only_with_a_seed(tmp_path: Path) -> None:
    model = hybrid()
    rows = rows_of(model)
    with pytest.raises(ConfigError, match=r"shuffles without a seed.*shuffle=False"):
        fit(DataLoader(rows, batch_size=4, shuffle=True), model, resume=Resume(tmp_path))
    loaders = [DataLoader(rows, batch_size=4, shuffle=True, generator=seeded(3)) for _ in range(2)]
    resume = Resume(tmp_path / "fit", seconds=0)

    class Killed(KeyboardInterrupt):
        pass

    def stop(done: list[int]) -> Any:
        def hook(*_: Any) -> None:
            done.append(1)
            if len(done) == 4:  # the look, and two batches whole
                raise Killed

        return hook

    handle = model.register_forward_hook(stop([]))
    with pytest.raises(Killed):
        fit(loaders[0], model, resume=resume)
    handle.remove()
    found = numbers(fit(loaders[1], model, resume=resume))
    never = numbers(fit(DataLoader(rows, 4, shuffle=True, generator=seeded(3)), model))
    assert not [name for name, one in never.items() if not one.equal(found[name])]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "partial-0-of-1.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"no partial fit.*Remove it"):
        fit(pairs((3, 4), 3), mlp(4, 5, 3), resume=Resume(tmp_path))


def test_another_number_of_processes_is_told(tmp_path: Path) -> None:
    (tmp_path / "partial-1-of-4.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a fit by 4 processes; these are 2.*remove"):
        Resume(tmp_path).open({}, Processes(0, 2))


def test_it_writes_no_more_often_than_asked(tmp_path: Path) -> None:
    written: list[float] = []
    now = [0.0]
    keeper = Resume(tmp_path, seconds=10.0).open({}, Processes())
    keeper.clock = lambda: now[0]
    keeper.write = lambda *_: written.append(now[0])  # type: ignore[method-assign]

    for _ in keeper.remaining(range(7), PartialFit({}, {}), seeded()):
        now[0] += 4.0
    assert written == [12.0, 24.0, 28.0]


def test_seconds_below_zero() -> None:
    with pytest.raises(ConfigError, match="must be 0 or more"):
        Resume("somewhere", seconds=-1)
