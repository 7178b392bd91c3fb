"""Bad input: each kind gives an error of ours that names what is wrong and what to do next."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import BertModel

from posthoc_bhpeft import (
    Bernoulli,
    Categorical,
    DenseGGN,
    Gaussian,
    HeldOut,
    Probit,
    bayesianize,
    errors,
)
from posthoc_bhpeft.batches import forward
from posthoc_bhpeft.errors import (
    BhpeftError,
    ConfigError,
    DataError,
    DeadBlockError,
    HiddenAdapterError,
    MemoryLimitError,
    ModelError,
    NonFiniteError,
    NothingTrainableError,
    UnclaimedParameterError,
)
from tests.hybrid.families import tiny_batch, tiny_model
from tests.models import hybrid, linear, lora, mlp, pairs, targets
from tests.tuned import fitted, plain_lora, tuned


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([tiny_batch(hybrid())])


class Shaped(nn.Module):
    """A linear layer whose output goes through any function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = linear(4, 3)
        self.change = change

    def forward(self, given: Tensor) -> Any:
        return self.change(self.layer(given))


def batch(**changes: Any) -> dict[str, Any]:
    """A good batch with some columns replaced; None leaves a column out."""
    columns = {**tiny_batch(tiny_model("bert")), **changes}
    return {name: column for name, column in columns.items() if column is not None}


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [batch(labels=torch.tensor(labels))]


LOADERS: dict[str, tuple[Callable[[], Any], type[BhpeftError], str]] = {
    "an empty list": (list, DataError, "no batch at all.*Pass labelled data"),
    "an empty DataLoader": (lambda: DataLoader([]), DataError, "no batch at all"),
    "a generator": (lambda: (batch() for _ in range(2)), DataError, r"generator.*list\(batches\)"),
    "a stream": (lambda: DataLoader(Stream(), batch_size=None), DataError, "Stream.*no length"),
    "a single batch": (batch, DataError, r"got dict.*\[batch\]"),
    "a file name": (lambda: "train.csv", DataError, "a DataLoader.*got str"),
    "nothing": (lambda: None, DataError, "got NoneType"),
    "labels missing": (
        lambda: [batch(labels=None)],
        DataError,
        "batch 0: no labels, only.*'labels'",
    ),
    "labels None": (lambda: [{**batch(), "labels": None}], DataError, "batch 0: no labels"),
    "labels too high": (
        lambda: labelled(0, 1, 2, 3),
        DataError,
        "Label 3 in row 3.*0 to 2",
    ),
    "labels below zero": (lambda: labelled(0, 1, 2, -1), DataError, "Label -1 in row 3.*-100"),
    "float labels": (lambda: labelled(0.5, 1.0, 2.0, 0.0), DataError, r"integers.*Gaussian\(\)"),
    "one-hot labels": (lambda: [batch(labels=torch.eye(4)[:, :3])], DataError, r"Bernoulli\(\)"),
    "labels as a column": (lambda: labelled([0], [1], [2], [0]), DataError, r"squeeze\(-1\)"),
    "words as labels": (
        lambda: [batch(labels=["a"] * 4)],
        DataError,
        "no numbers.*'a'.*label2id",
    ),
    "one label for all": (
        lambda: [batch(labels=1)],
        DataError,
        r"single number 1.*DataLoader\(",
    ),
    "too few labels": (lambda: labelled(0, 1), DataError, "4 rows of inputs but 2 labels"),
    "an empty batch": (
        lambda: [{name: column[:0] for name, column in batch().items()}],
        DataError,
        "batch 0: it has no rows",
    ),
    "all ignored": (lambda: labelled(*[-100] * 4), DataError, "4 rows, all marked -100"),
    "a string as batch": (lambda: ["text"], DataError, "type str is not understood.*Supported"),
    "rows not collated": (lambda: [[{"x": 1}] * 3], DataError, "list of 3 entries.*collate_fn"),
    "a triple": (lambda: [(1, 2, 3)], DataError, "tuple of 3 entries"),
    "texts": (lambda: [(["a", "b"], torch.tensor([0, 1]))], DataError, "return_tensors='pt'"),
    "lists": (lambda: [batch(input_ids=[[3, 4]])], DataError, r"'input_ids'.*list.*with_format"),
    "strange words": (
        lambda: [batch(input_ids=torch.full((4, 9), 999))],
        DataError,
        "cannot take.*vocabulary",
    ),
    "long texts": (
        lambda: [{"input_ids": torch.full((1, 99), 5), "labels": torch.tensor([0])}],
        DataError,
        "cannot take.*truncation=True",
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name: str, forbid_fit: None) -> None:
    make, kind, pattern = LOADERS[name]
    with pytest.raises(kind, match=pattern):
        bayesianize(tuned(), make(), progress=False)


def test_a_column_the_model_does_not_take(forbid_fit: None) -> None:
    model = Shaped(lambda f: f)
    with pytest.raises(DataError, match=r"does not take this batch.*idx.*remove_columns"):
        bayesianize(model, [{"idx": torch.ones(1), "labels": torch.tensor([0])}], progress=False)


@pytest.fixture
def forbid_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error must come before the long work."""

    def long_work(*_: Any, **__: Any) -> None:
        raise AssertionError("the fit was started")

    monkeypatch.setattr("posthoc_bhpeft.api.fit_curvature", long_work)


def frozen() -> nn.Module:
    return tuned().requires_grad_(False)


def bare() -> nn.Module:
    return tiny_model("bert").requires_grad_(False)


def lora_under_prefix() -> nn.Module:
    inner = get_peft_model(
        tiny_model("bert"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    )
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    return get_peft_model(inner.base_model.model, config)


def merged() -> nn.Module:
    model = tuned(config=plain_lora())
    model.merge_adapter()
    return model


def unloaded() -> nn.Module:
    return tuned(config=plain_lora()).merge_and_unload().requires_grad_(False)


def disabled() -> nn.Module:
    model = lora()
    model.base_model.disable_adapter_layers()
    return model


def nan_weight() -> nn.Module:
    model = tuned()
    next(p for p in model.parameters() if p.requires_grad).data[0] = float("nan")
    return model


def dead_layer() -> nn.Module:
    model = tuned()
    model.base_model.model.unused = linear(2, 2)
    return model


def bare_parameter() -> nn.Module:
    model = tuned()
    model.base_model.model.extra = nn.Parameter(torch.ones(3))
    return model


def headless() -> nn.Module:
    base = BertModel(tiny_model("bert").config).double()
    return get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))


MODELS: dict[str, tuple[Callable[[], Any], type[BhpeftError], str]] = {
    "a name": (lambda: "bert-base-uncased", ModelError, "got str.*AutoModelForSequence"),
    "an adapter frozen": (frozen, HiddenAdapterError, "is_trainable=True"),
    "nothing trainable": (bare, NothingTrainableError, "get_peft_model"),
    "LoRA under a stock prefix": (lora_under_prefix, HiddenAdapterError, "frozen.*HybridConfig"),
    "a merged adapter": (merged, HiddenAdapterError, r"merged.*unmerge_adapter\(\)"),
    "an unloaded adapter": (unloaded, NothingTrainableError, "no adapter any more"),
    "a disabled adapter": (disabled, HiddenAdapterError, "enable_adapter_layers"),
    "NaN weights": (nan_weight, NonFiniteError, "because its weights are.*lora_A.*checkpoint"),
    "no head": (headless, ModelError, "no logits.*AutoModelForSequenceClassification"),
    "a bare parameter": (bare_parameter, UnclaimedParameterError, r"extra \(3,\)"),
    "DataParallel": (lambda: nn.DataParallel(tuned()), ModelError, r"Pass model\.module"),
    "compiled": (lambda: torch.compile(tuned()), ModelError, r"Pass model\._orig_mod"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, forbid_fit: None) -> None:
    make, kind, pattern = MODELS[name]
    with pytest.raises(kind, match=pattern):
        bayesianize(make(), [batch()], progress=False)


def test_an_adapter_loaded_frozen(tmp_path: Any, forbid_fit: None) -> None:
    tuned(config=plain_lora()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    with pytest.raises(HiddenAdapterError, match="loaded frozen unless is_trainable=True"):
        bayesianize(model, [batch()], progress=False)


def test_a_layer_that_never_runs() -> None:
    with pytest.raises(DeadBlockError, match=r"took no part.*unused"):
        bayesianize(dead_layer(), [batch()], progress=False)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], type[BhpeftError], str]] = {
    "three axes": (lambda f: f[:, None], ModelError, r"\(2, 1, 3\).*no head"),
    "a tuple": (lambda f: (f[:, None],), ModelError, "no head"),
    "a dict": (lambda f: {"hidden": f}, ModelError, "dict, which has no logits"),
    "infinite": (lambda f: f / 0, NonFiniteError, "weights are finite.*bfloat16"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    change, kind, pattern = OUTPUTS[name]
    with pytest.raises(kind, match=pattern):
        forward(Shaped(change), torch.ones(2, 4).double())


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"likelihood": Categorical}, r"Categorical\(\) \(with its parentheses\)"),
    "a string": ({"prior": "evidence"}, r"MarginalLikelihood\(\)"),
    "a number": ({"prior": 1.0}, r"FixedPrecision\(1.0\)"),
    "a link": ({"predictive": Probit()}, r"Linearized\(\)"),
    "too large": ({"curvature": DenseGGN(max_size=10)}, r"max_size=10.*KroneckerGGN\(\)"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    settings, pattern = SETTINGS[name]
    with pytest.raises(ConfigError, match=pattern):
        bayesianize(tuned(), [batch()], progress=False, **settings)


def test_a_predictive_of_one_call_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"predictive=Linearized\(\)"):
        fitted().predict(batch(), Probit())  # type: ignore[arg-type]


def test_a_held_out_loader_is_checked_before_the_fit(forbid_fit: None) -> None:
    with pytest.raises(DataError, match=r"HeldOut\(loader\) has no labelled row"):
        bayesianize(tuned(), [batch()], prior=HeldOut([]), progress=False)


LIKELIHOODS: dict[str, tuple[Any, Any, Any, str]] = {
    "one logit": (Categorical(), mlp(4, 1), pairs((6, 4), 1), r"Gaussian\(\).*Bernoulli\(\)"),
    "targets too few": (Gaussian(), mlp(4, 2), targets((6, 4), 1), r"outputs have shape \(6, 2\)"),
    "a target NaN": (
        Gaussian(),
        mlp(4, 1),
        [(torch.ones(2, 4).double(), torch.tensor([1.0, float("nan")]))],
        "NaN or infinite",
    ),
    "an answer of 2": (
        Bernoulli(),
        mlp(4, 2),
        [(torch.ones(2, 4).double(), torch.full((2, 2), 2.0))],
        r"must lie in \[0, 1\]",
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_labels_of_each_likelihood(name: str, forbid_fit: None) -> None:
    likelihood, model, loader, pattern = LIKELIHOODS[name]
    with pytest.raises(DataError, match=pattern):
        bayesianize(model, loader, likelihood=likelihood, progress=False)


def test_inference_mode() -> None:
    with (
        torch.inference_mode(),
        pytest.raises(ModelError, match=r"inference_mode\(\) is on"),
    ):
        bayesianize(tuned(), [batch()], progress=False)


def test_memory_is_checked_before_the_fit(
    monkeypatch: pytest.MonkeyPatch, forbid_fit: None
) -> None:
    monkeypatch.setattr("posthoc_bhpeft.memory.available_memory", lambda device: 1000)
    with pytest.raises(MemoryLimitError, match=r"1000 B are free on cpu[^$]*DiagonalGGN\(\)"):
        bayesianize(tuned(), [batch()], progress=False)


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nlong text"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)."),
    "python": MemoryError(),
}


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
def test_memory_that_runs_out_in_the_fit(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise OUT_OF_MEMORY[device]

    monkeypatch.setattr("posthoc_bhpeft.api.fit_curvature", run_out)
    with pytest.raises(MemoryLimitError, match=r"smaller batch_size.*model\.cpu\(\)") as raised:
        bayesianize(tuned(), [batch()], progress=False)
    assert raised.value.__cause__ is OUT_OF_MEMORY[device]


def test_other_runtime_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("posthoc_bhpeft.api.fit_curvature", fail)
    with pytest.raises(RuntimeError, match="something else"):
        bayesianize(tuned(), [batch()], progress=False)


def test_training_on_after_the_fit_is_noticed() -> None:
    bayes = fitted()
    next(p for p in bayes.model.parameters() if p.requires_grad).data.add_(1e-9)
    for call in (bayes.predict, lambda given: bayes.predict_loader([given], progress=False)):
        with pytest.raises(ModelError, match=r"changed after.*Fit again.*deepcopy"):
            call(batch())


def test_predicting_nothing() -> None:
    bayes = fitted()
    with pytest.raises(DataError, match="the loader has no batch"):
        bayes.predict_loader([], progress=False)
    with pytest.raises(DataError, match="NoneType is not understood"):
        bayes.predict(None)


def test_every_error_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert all(issubclass(kind, BhpeftError) for kind in kinds)
    assert not [kind.__name__ for kind in kinds if kind.__name__ not in tree]
