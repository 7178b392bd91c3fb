"""The penalty: once a step however batches are accumulated, in full precision, logged apart."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.training.penalized import PenalizedTrainer
from tests.hybrid.families import tiny_batch
from tests.tuned import tuned

N_ROWS, RATE = 16, 0.05


class Quadratic:
    """`scale / 2 |theta - 1|^2` over the trained weights; remembers how it was called."""

    def __init__(self, scale: float = 3.0) -> None:
        self.scale, self.calls = scale, []

    def penalty(self, model: nn.Module) -> torch.Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        # Autocast would round this product to half precision.
        product = torch.ones(1, 1) @ torch.full((1, 1), 1.001)
        self.calls.append((product.dtype, type(model).__name__, torch.is_grad_enabled()))
        return 0.5 * self.scale * torch.stack([(p - 1).square().sum() for p in parameters]).sum()


class Constant:
    def penalty(self, model: nn.Module) -> torch.Tensor:
        return torch.tensor(8.0)


@cache
def rows() -> list[dict[str, torch.Tensor]]:
    batch = tiny_batch(tuned(), N_ROWS, padding=False)
    return [{name: values[n] for name, values in batch.items()} for n in range(N_ROWS)]


def gather(features):
    return {name: torch.stack([row[name] for row in features]) for name in features[0]}


def unshuffled(trainer):
    """Batches in the order of the rows, so that a loop by hand sees the same."""
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(rows())
    return trainer


def make(model, folder, *, batch_size, accumulate, penalty, weight=1.0, epochs=2, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        optim="sgd",
        max_grad_norm=0.0,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
        bf16=options.pop("bf16", False),
    )
    return unshuffled(
        PenalizedTrainer(
            model=model,
            args=arguments,
            train_dataset=rows(),
            data_collator=gather,
            penalty=penalty,
            n_rows=N_ROWS,
            weight=weight,
            **options,
        )
    )


def frozen_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def by_hand(penalty, *, batch_size, weight=1.0, epochs=2):
    """`loss = nll + penalty / n`, one step of gradient descent for each batch."""
    model = frozen_dropout(tuned()).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(epochs):
        for start in range(0, N_ROWS, batch_size):
            batch = gather(rows()[start : start + batch_size])
            loss = model(**batch).loss + weight * penalty.penalty(model) / N_ROWS
            for parameter, slope in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                parameter.data.sub_(RATE * slope)
    return model


def assert_equal_weights(one, other):
    for (name, mine), (_, theirs) in zip(
        one.named_parameters(), other.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: n + m)


def mean_loss(outputs, labels, num_items_in_batch=None):
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("loss", [None, mean_loss], ids=["own-loss", "loss-function"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (2, 4)])
def test_it_is_the_loop_by_hand(batch_size, accumulate, loss, tmp_path):
    model = frozen_dropout(tuned())
    options = {"batch_size": batch_size, "accumulate": accumulate, "compute_loss_func": loss}
    make(model, tmp_path, penalty=Quadratic(), weight=0.7, **options).train()
    assert_equal_weights(model, by_hand(Quadratic(), batch_size=8, weight=0.7))


def test_steps_of_unequal_length_have_one_penalty_each(tmp_path):
    model, penalty = frozen_dropout(tuned()), Quadratic()
    # Eight batches of two in steps of three, three and two.
    trainer = make(
        model,
        tmp_path,
        batch_size=2,
        accumulate=3,
        penalty=penalty,
        compute_loss_func=lambda outputs, labels, num_items_in_batch: 0.0 * outputs.logits.sum(),
    )
    trainer.train()
    assert len(penalty.calls) == 6
    expected = {n: p.detach() for n, p in tuned().named_parameters()}
    for name, parameter in model.named_parameters():
        wanted = expected[name]
        if parameter.requires_grad:
            wanted = 1 + (wanted - 1) * (1 - RATE * penalty.scale / N_ROWS) ** 6
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_both_parts_are_logged_and_add_up(tmp_path):
    trainer = make(tuned(), tmp_path, batch_size=4, accumulate=2, penalty=Constant(), weight=0.5)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2
    for row in logs:
        assert row["loss_penalty"] == pytest.approx(0.5 * 8.0 / N_ROWS)
        assert row["loss"] == pytest.approx(row["loss_data"] + row["loss_penalty"])


def test_the_logged_data_loss_is_that_without_penalty(tmp_path):
    def logged(penalty):
        trainer = make(
            frozen_dropout(tuned()), tmp_path, batch_size=4, accumulate=2, penalty=penalty, epochs=1
        )
        trainer.train()
        return next(row for row in trainer.state.log_history if "loss" in row)

    with_it = logged(Constant())
    free = logged(Quadratic(0.0))
    assert with_it["loss_data"] == pytest.approx(free["loss"], rel=1e-6)
    assert free["loss_penalty"] == 0.0


def test_mixed_precision_leaves_the_penalty_alone(tmp_path):
    penalty, model = Quadratic(), tuned().float()
    seen = []
    model.base_model.model.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    make(model, tmp_path, batch_size=4, accumulate=2, penalty=penalty, bf16=True).train()
    assert set(seen) == {torch.bfloat16}
    assert {dtype for dtype, _, _ in penalty.calls} == {torch.float32}


def test_autocast_around_the_whole_training_leaves_the_penalty_alone(tmp_path):
    penalty = Quadratic()
    trainer = make(tuned().float(), tmp_path, batch_size=8, accumulate=1, penalty=penalty)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trainer.train()
    assert {dtype for dtype, _, _ in penalty.calls} == {torch.float32}


def test_evaluation_is_of_the_data_alone(tmp_path):
    model = tuned()
    penalty = Quadratic(1e6)
    trainer = make(model, tmp_path, batch_size=8, accumulate=1, penalty=penalty)
    with torch.no_grad():
        expected = float(model(**gather(rows())).loss)
    assert trainer.evaluate(rows())["eval_loss"] == pytest.approx(expected)
    assert not penalty.calls


def test_a_penalty_gets_the_model_itself(tmp_path):
    penalty = Quadratic()
    make(tuned(), tmp_path, batch_size=8, accumulate=1, penalty=penalty).train()
    assert {name for _, name, _ in penalty.calls} == {type(tuned()).__name__}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_are_one(accumulate):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node=2", "-m", "tests.two_processes", str(accumulate)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([*launcher, *script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("wrong", [{"n_rows": 0}, {"weight": -1.0}, {"weight": float("nan")}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match="number of training rows"):
        PenalizedTrainer(penalty=Constant(), **{"n_rows": 4, **wrong})


def test_trainer_itself_weighs_accumulated_batches_by_their_number(tmp_path):
    # Why PenalizedTrainer does not believe a classifier that takes any keyword. If this fails,
    # transformers mended it.
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(model=tuned(), args=arguments).model_accepts_loss_kwargs
