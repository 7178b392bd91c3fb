"""Training a hybrid: Trainer, checkpoints, memory savers, number formats, compilation."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainingArguments

from tests.hybrid.families import families, tiny_batch, tiny_model
from tests.hybrid.tools import (
    fresh_hybrid,
    gradients,
    live_hybrid,
    logits,
    trainable,
)

#: transformers offers no gradient checkpointing for these.
WITHOUT_CHECKPOINTING = ("albert", "mpnet")


def rows(model: nn.Module, count: int = 16) -> list[dict[str, torch.Tensor]]:
    batch = tiny_batch(model, rows=count)
    return [{key: value[i] for key, value in batch.items()} for i in range(count)]


def trainer(folder, steps: int) -> Trainer:
    torch.manual_seed(0)
    model = fresh_hybrid("bert", base={"dtype": torch.float32})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows(model))


def test_trainer_checkpoints_and_resumes(tmp_path):
    straight = trainer(tmp_path / "a", steps=4)
    straight.train()
    stopped = trainer(tmp_path / "b", steps=2)
    stopped.train()
    resumed = trainer(tmp_path / "b", steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    start = trainable(fresh_hybrid("bert", base={"dtype": torch.float32}))
    moved = trainable(straight.model)
    assert all(not torch.equal(moved[name], start[name]) for name in start)
    for name, parameter in trainable(resumed.model).items():
        torch.testing.assert_close(parameter, moved[name], msg=name)


def test_checkpoint_of_trainer_loads_as_a_hybrid(tmp_path):
    run = trainer(tmp_path, steps=2)
    run.train()
    base = tiny_model("bert", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "checkpoint-2").eval()
    batch = tiny_batch(loaded)
    assert torch.equal(logits(loaded, batch), logits(run.model.eval(), batch))


@pytest.mark.parametrize("name", [n for n in families() if n not in WITHOUT_CHECKPOINTING])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    model = live_hybrid(name, adapter_placement="parallel")
    batch = tiny_batch(model)
    plain = gradients(model, batch)
    base = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    base.config.use_cache = False
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout", "activation_dropout", "dropout_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    for key, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_with_float32_parts(name, dtype):
    model = live_hybrid(name, base={"dtype": dtype}, adapter_placement="parallel")
    ours = {n: p for n, p in trainable(model).items() if "bhpeft_" in n}
    assert {p.dtype for p in ours.values()} == {torch.float32}
    output = model(**tiny_batch(model))
    assert output.logits.dtype == dtype
    output.logits.float().square().sum().backward()
    grads = [p.grad for p in ours.values()]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_bfloat16_with_gates():
    model = live_hybrid("bert", base={"dtype": torch.bfloat16}, gates=True)
    assert logits(model, tiny_batch(model)).isfinite().all()


def test_autocast():
    model = live_hybrid("bert", base={"dtype": torch.float32}, gates=True)
    batch = tiny_batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = logits(model, batch)
    torch.testing.assert_close(mixed.float(), logits(model, batch), rtol=0, atol=0.15)


def test_bfloat16_round_trip(tmp_path):
    base = {"dtype": torch.bfloat16}
    model = live_hybrid("bert", base=base)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert", **base), tmp_path).eval()
    batch = tiny_batch(model)
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("settings", [{}, {"adapter_placement": "parallel", "gates": True}])
def test_compiled_model_agrees(name, settings):
    model = live_hybrid(name, **settings)
    batch = tiny_batch(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, batch), logits(model, batch))
    plain = gradients(model, batch)
    model.zero_grad()
    compiled(**batch).logits.square().sum().backward()
    for key, parameter in trainable(model).items():
        torch.testing.assert_close(parameter.grad, plain[key], msg=key)
