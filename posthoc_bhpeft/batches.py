"""Batches in, outputs out: the one place that knows what a batch looks like.

A batch is a mapping with `labels` (as `Trainer` and `datasets` give) or a pair
`(inputs, labels)`; inputs are a mapping of keyword arguments or one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.errors import DataError, ModelError, NonFiniteError

LABEL_NAMES = ("labels", "label", "label_ids")
IGNORED = -100
"""Label of a row without a label, as in torch's `ignore_index`."""

Inputs = Mapping[str, Any] | Tensor


class Loader(Protocol):
    """A `DataLoader`, a list of batches, or anything sized that can be iterated again."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches, from the first."""
        ...


@dataclass(frozen=True)
class LabelSummary:
    """What one look through a loader found: rows with a label, and rows without."""

    n_rows: int
    n_ignored: int


def split_batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """Inputs and labels of a batch; labels are `None` where it has none.

    Raises:
        DataError: If the batch is neither a mapping, a pair nor a tensor, or labels are no numbers.
    """
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABEL_NAMES}
        labels = next((batch[name] for name in LABEL_NAMES if name in batch), None)
        return check_inputs(inputs), as_labels(labels)
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return check_inputs(batch[0]), as_labels(batch[1])
    if isinstance(batch, Tensor):
        return batch, None
    many = f" of {len(batch)} entries" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f"A batch of type {type(batch).__name__}{many} is not understood. Supported: a dict with "
        "'labels', or a pair (inputs, labels) where inputs are a dict of keyword arguments or a "
        "tensor. For a list of rows, give the DataLoader a collate_fn (DataCollatorWithPadding)."
    )


def check_inputs(inputs: Any) -> Inputs:
    """The inputs of a batch, unless they are no tensors.

    Raises:
        DataError: If they are neither a mapping nor a tensor, or hold lists or arrays.
    """
    if isinstance(inputs, Tensor):
        return inputs
    if not isinstance(inputs, Mapping):
        raise DataError(
            f"The inputs of a batch must be a dict of keyword arguments or a tensor, got "
            f"{type(inputs).__name__}. For texts, use what the tokenizer returns: "
            "tokenizer(texts, padding=True, return_tensors='pt')."
        )
    for name, value in inputs.items():
        if isinstance(value, (list, tuple, str)) or type(value).__module__ == "numpy":
            raise DataError(
                f"{name!r} in a batch is a {type(value).__name__}, not a tensor. Tokenize with "
                "return_tensors='pt', or call dataset.with_format('torch'); columns that are no "
                "input of the model (texts, ids) are left out with dataset.remove_columns."
            )
    return inputs


def as_labels(labels: Any) -> Tensor | None:
    """Labels as a tensor `(N, ...)`, or `None` where there are none.

    Raises:
        DataError: If they are no numbers, or one number for the whole batch.
    """
    if labels is None:
        return None
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The labels of a batch are no numbers ({error}), but {str(labels)[:60]}. Give each "
            "class a number from 0, as ClassLabel and label2id do, and every row equally many "
            "labels."
        ) from error
    if tensor.dim() == 0:
        raise DataError(
            f"The labels of a batch are the single number {tensor.item()!r}, not one a row. Single "
            "rows are put into batches by DataLoader(dataset, batch_size=16)."
        )
    return tensor


def move(inputs: Inputs, device: torch.device) -> Inputs:
    """Inputs on a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def device_of(model: nn.Module) -> torch.device:
    """The device inputs go to: that of the first parameter (also with a `device_map`)."""
    return next(model.parameters()).device


def forward(model: nn.Module, inputs: Inputs, *, positions: bool = False) -> Tensor:
    """Outputs `(N, C)` of a model: the logits of a transformers model, or the tensor returned.

    Args:
        model: In the mode it is in.
        inputs: Keyword arguments or a tensor, on its device.
        positions: Outputs are `(N, T, C)`, one row at every position; see `Likelihood.positions`.

    Raises:
        DataError: If the model cannot take the inputs.
        ModelError: If the outputs are of another shape.
        NonFiniteError: If they hold NaN or infinity.
    """
    if positions:
        check_decoder_inputs(model, inputs)
    outputs = logits_of(call(model, inputs))
    check_shape(outputs, positions)
    if outputs.dim() == 1:
        outputs = outputs.unsqueeze(-1)
    outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if not bool(torch.isfinite(outputs).all()):
        raise NonFiniteError(explain_non_finite(model))
    return outputs


def check_shape(outputs: Tensor, positions: bool) -> None:
    """Raise unless outputs are `(N, C)`, or `(N,)`; with positions, `(N, T, C)`.

    Raises:
        ModelError: Naming the likelihood that fits them.
    """
    if positions and outputs.dim() != 3:
        raise ModelError(
            f"Outputs have shape {tuple(outputs.shape)}, but Tokens() is about logits at every "
            "position of a text, (N, T, C): AutoModelForTokenClassification, "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM. For one label a text pass "
            "likelihood=Categorical()."
        )
    if not positions and outputs.dim() not in (1, 2):
        raise ModelError(
            f"Outputs have shape {tuple(outputs.shape)}, but one row of outputs a sample, (N, C), "
            "is needed: sequence classification, multi-label, regression or multiple choice. With "
            "a label at every position of a text pass likelihood=Tokens(), for a causal language "
            "model Tokens(shift=True). A language model is asked a question by TaskModel(model, "
            "AnswerTokens.of(tokenizer, choices)), see docs/tasks.md; hidden states mean that the "
            "model has no head."
        )


def check_decoder_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Raise if an encoder-decoder is not told what its decoder reads.

    Raises:
        DataError: With the collator that makes it.
    """
    config = getattr(model, "config", None)
    names = {"decoder_input_ids", "decoder_inputs_embeds"}
    given = set(inputs) if isinstance(inputs, Mapping) else set()
    if getattr(config, "is_encoder_decoder", False) and not names & given:
        raise DataError(
            "An encoder-decoder needs 'decoder_input_ids' beside the labels, which are kept from "
            "it. DataCollatorForSeq2Seq(tokenizer, model=model) adds them, or "
            "model.prepare_decoder_input_ids_from_labels(labels)."
        )


def logits_of(result: Any) -> Tensor:
    """The logits in what a model returned: an output of transformers, a tuple, or a tensor.

    Raises:
        ModelError: If there are none.
    """
    outputs = getattr(result, "logits", result)
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"The model returned {type(result).__name__}, which has no logits. Use a model with a "
            "head (AutoModelForSequenceClassification), or one that returns a tensor."
        )
    return outputs


def call(model: nn.Module, inputs: Inputs) -> Any:
    """`model(inputs)`, or `model(**inputs)`.

    Raises:
        DataError: If a column is no argument of the model, or a token id is not in its vocabulary.
    """
    try:
        return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        given = sorted(inputs) if isinstance(inputs, Mapping) else "one tensor"
        raise DataError(
            f"{type(model).__name__} does not take this batch ({given}): {error}. Keep only the "
            "columns that the model's forward has (dataset.remove_columns)."
        ) from error
    except (IndexError, RuntimeError) as error:
        if not isinstance(error, IndexError) and not is_about_sizes(error):
            raise
        raise DataError(
            f"{type(model).__name__} cannot take the sizes or numbers in this batch: {error}. A "
            "token id is beyond its vocabulary (the tokenizer of another model?), or a text is "
            "longer than its positions (truncation=True, max_length=...)."
        ) from error


def is_about_sizes(error: RuntimeError) -> bool:
    """Whether a model failed on the shape of its inputs, rather than for lack of memory."""
    texts = ("expanded size", "size of tensor", "shapes cannot be multiplied", "Sizes of tensors")
    return any(text in str(error) for text in texts)


def explain_non_finite(model: nn.Module) -> str:
    """The message of `NonFiniteError`: which weights, if any, are to blame."""
    broken = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        return (
            f"The model's outputs are NaN or infinite because its weights are: {len(broken)} of "
            f"its tensors, first {broken[0]!r}. The training diverged or the file is damaged: go "
            "back to a checkpoint before that, and lower the learning rate."
        )
    return (
        "The model's outputs are NaN or infinite though its weights are finite. In float16 that is "
        "overflow: run in bfloat16 or float32. Also look for rows with an all-zero attention mask."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each module back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def labelled_rows(labels: Tensor) -> Tensor:
    """Mask `(N,)` of the rows that have a label, at one position or more (not `IGNORED`)."""
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return (labels != IGNORED).flatten(1).any(1) if labels.dim() > 1 else labels != IGNORED


def look_through(
    loader: Iterable[Any],
    inspect: Callable[[Inputs, Tensor], None],
    name: str = "The loader",
) -> LabelSummary:
    """Look at every batch once, before any long work.

    Args:
        loader: Read from its first batch to its last.
        inspect: Called with the inputs of each batch and the labels of its labelled rows; its
            `DataError` is raised again with the number of the batch.
        name: Of the loader, for errors.

    Returns:
        How many rows have a label.

    Raises:
        DataError: If the loader cannot be iterated twice, is empty, or a batch has no labels.
    """
    summary = summarize(loader, inspect, name)
    check_labelled(summary, name)
    return summary


def summarize(
    loader: Iterable[Any], inspect: Callable[[Inputs, Tensor], None], name: str
) -> LabelSummary:
    """`look_through` a part of the data, which may be empty.

    Raises:
        DataError: If the loader cannot be iterated twice, or a batch has no labels.
    """
    check_rereadable(loader, name)
    n_rows = n_ignored = 0
    for place, batch in enumerate(loader):
        try:
            inputs, labels = split_batch(batch)
            if labels is None:
                raise DataError(describe_unlabelled(batch))
            check_row_count(inputs, len(labels))
            kept = labelled_rows(labels)
            inspect(inputs, labels[kept])
        except DataError as error:
            raise DataError(f"{name}, batch {place}: {error}") from error
        n_rows, n_ignored = n_rows + int(kept.sum()), n_ignored + int((~kept).sum())
    return LabelSummary(n_rows, n_ignored)


def check_labelled(summary: LabelSummary, name: str) -> None:
    """Raise if there is no labelled row.

    Raises:
        DataError: With what there is instead.
    """
    if summary.n_rows == 0:
        n_ignored = summary.n_ignored
        found = f"{n_ignored} rows, all marked {IGNORED}" if n_ignored else "no batch at all"
        raise DataError(
            f"{name} has no labelled row: {found}. Pass labelled data; for the curvature, which is "
            "a sum over it, what the model was trained on."
        )


def check_rereadable(loader: Any, name: str) -> None:
    """Raise unless a loader has a length and can be read more than once.

    Raises:
        DataError: If it is an iterator, a stream, or not iterable.
    """
    try:
        sized = len(loader) >= 0 and not isinstance(loader, (Iterator, Mapping, str, Tensor))
    except TypeError:
        sized = False
    if not sized:
        raise DataError(
            f"{name} must be batches that can be counted and read more than once: a DataLoader "
            f"over a dataset with a length, or a list; got {describe_stream(loader)}. Turn a "
            "generator into list(batches), and a single batch into [batch]."
        )


def describe_stream(loader: Any) -> str:
    """What was passed in place of a loader."""
    dataset = getattr(loader, "dataset", None)
    inside = "" if dataset is None else f" over {type(dataset).__name__}, which has no length"
    return f"{type(loader).__name__}{inside}"


def describe_unlabelled(batch: Any) -> str:
    """What was found in place of labels."""
    found = {k: v for k, v in batch.items() if v is not None} if isinstance(batch, Mapping) else {}
    only = f", only {sorted(map(str, found))}" if found else ""
    return (
        f"no labels{only}. Looked for {', '.join(map(repr, LABEL_NAMES))} in a dict, or a pair "
        "(inputs, labels). The prior and the curvature are found from labelled data."
    )


def check_row_count(inputs: Inputs, n_labels: int) -> None:
    """Raise if inputs and labels of a batch have different numbers of rows.

    Raises:
        DataError: With both numbers.
    """
    tensors = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    n_rows = next((len(t) for t in tensors if isinstance(t, Tensor) and t.dim() > 0), n_labels)
    if n_labels == 0:
        raise DataError("it has no rows. Leave empty batches out.")
    if n_rows != n_labels:
        raise DataError(
            f"there are {n_rows} rows of inputs but {n_labels} labels. Give one label a row; a row "
            f"without one is marked {IGNORED}."
        )
