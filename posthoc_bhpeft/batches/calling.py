"""A model called on a batch: outputs of one shape, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches.quantised import differentiable
from posthoc_bhpeft.batches.reading import Inputs
from posthoc_bhpeft.errors import DataError, ModelError, NonFiniteError


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
    """Put a model in evaluation mode, and each module back in its own mode afterwards.

    A model that was compiled in place, `model.compile()`, runs without its compiled code: hooks and
    other weights would have it compiled again and again, for minutes. For layers in 4 bits see
    `quantised.differentiable`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), differentiable(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
