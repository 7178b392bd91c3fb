"""`AnswerTokens`: a causal language model that answers with one token, as a classifier.

The logits of the token after the prompt, restricted to the tokens of the choices, are the logits
`(N, C)` of a softmax over the choices: the setting of Laplace-LoRA (Yang et al., 2024, "Bayesian
low-rank adaptation for large language models", https://arxiv.org/abs/2308.13111).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import call, logits_of
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.tasks.absent import COUNT_NAME, beyond_count, without_absent
from posthoc_bhpeft.tasks.task import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerTokens:
    """Logits `(N, C)` of the choices' tokens, read after the last token of each prompt.

    Prompts may be padded on either side. Only the hidden state at the last real token goes through
    the head, so logits are `(N, V)` at most, never `(N, T, V)`.

    Args:
        token_ids: One token a choice; `AnswerTokens.of` finds them.
        choices: The texts of the choices, for people.
    """

    token_ids: tuple[int, ...]
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) < 2 or len(set(self.token_ids)) < len(self.token_ids):
            raise ConfigError(
                f"AnswerTokens needs two or more different tokens, got {self.token_ids}. Make them "
                "with AnswerTokens.of(tokenizer, (' A', ' B'))."
            )

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, choices: Sequence[str], *, after: str = "Answer:"
    ) -> AnswerTokens:
        """The tokens of choices as they stand after a prompt.

        Args:
            tokenizer: Of the model.
            choices: Such as `(" A", " B")`; whether a space belongs to it depends on the tokenizer.
            after: The end of the prompts, since neighbours decide how a text is cut into tokens.

        Raises:
            ConfigError: If a choice is not one token there, or two choices are the same token.
        """
        return cls(tuple(answer_token(tokenizer, one, after) for one in choices), tuple(choices))

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """See `Task.outputs`; `n_choices` `(N,)` among the inputs says where there are fewer."""
        given = {name: value for name, value in inputs.items() if name != COUNT_NAME}
        logits = next_token_logits(model, given)
        if max(self.token_ids) >= logits.shape[1]:
            raise ModelError(
                f"Choice {self.choices or self.token_ids} has token {max(self.token_ids)}, but the "
                f"model has {logits.shape[1]} tokens. Use the tokenizer of this model."
            )
        chosen = logits[:, list(self.token_ids)]
        return without_absent(chosen, beyond_count(inputs.get(COUNT_NAME), chosen))


def next_token_logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Logits `(N, V)` of the token that follows each prompt.

    Args:
        model: A causal language model, with or without an adapter.
        inputs: `input_ids (N, T)`, and `attention_mask (N, T)` where prompts are padded.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise DataError(
            "A prompt is a row of 'input_ids' (N, T), and this batch has "
            f"{sorted(inputs) if ids is None else tuple(ids.shape)}. Tokenize prompts with "
            "tokenizer(prompts, padding=True, return_tensors='pt')."
        )
    last = last_positions(ids, inputs.get("attention_mask"))
    with reading_at(model, last, ids.shape[1]):
        logits = logits_of(call(model, {**inputs, **positions_of(model, inputs)}))
    if logits.dim() != 3:
        raise ModelError(
            f"A language model gives logits (N, T, V), and {type(base_of(model)).__name__} gave "
            f"{tuple(logits.shape)}. Load it with AutoModelForCausalLM."
        )
    # A head that was not found has seen all positions, those of virtual tokens first.
    shift = logits.shape[1] - ids.shape[1]
    return logits[:, 0] if logits.shape[1] == 1 else logits[rows_of(last), last + shift]


def last_positions(ids: Tensor, mask: Any) -> Tensor:
    """Position `(N,)` of the last real token of each row, padded left or right.

    Raises:
        DataError: If the mask is not `(N, T)`, or leaves nothing of a row.
    """
    if mask is None:
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise DataError(
            f"attention_mask must be (N, T) as input_ids {tuple(ids.shape)}, to tell where each "
            f"prompt ends; got {tuple(getattr(mask, 'shape', ()))}."
        )
    real = mask != 0
    if not bool(real.any(1).all()):
        raise DataError("A row of the batch has no token at all: its attention mask is zero.")
    return (real * torch.arange(ids.shape[1], device=ids.device)).argmax(1)


def rows_of(last: Tensor) -> Tensor:
    """`0 .. N - 1`, to index a row at its own position."""
    return torch.arange(len(last), device=last.device)


@contextmanager
def reading_at(model: nn.Module, last: Tensor, length: int) -> Iterator[None]:
    """Let the head of a language model see one position a row, `(N, 1, d)` of `(N, T, d)`.

    The head itself is called, so LoRA on it, soft caps and scales behind it stay as they are.
    """
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find()

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        # Prompt tuning puts virtual tokens before the prompt.
        chosen = hidden[rows_of(last), last + hidden.shape[1] - length]
        return (chosen.unsqueeze(1), *args[1:])

    if not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def positions_of(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Positions that start at each row's first real token, where the model needs to be told.

    `generate` does so too; without it a prompt that is padded on the left would be read at other
    positions than alone.
    """
    mask = inputs.get("attention_mask")
    if mask is None or "position_ids" in inputs or counts_virtual_tokens(model):
        return {}
    if bool((mask[:, 0] != 0).all()):
        return {}
    if "position_ids" not in inspect.signature(base_of(model).forward).parameters:
        return {}
    # Counted from the first one, so that tokens hidden inside a prompt move no other.
    first = (mask != 0).int().argmax(1, keepdim=True)
    places = torch.arange(mask.shape[1], device=mask.device)
    return {"position_ids": (places - first).clamp_min(0)}


def counts_virtual_tokens(model: nn.Module) -> bool:
    """Whether peft puts virtual tokens before the prompt, and finds the positions itself."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def answer_token(tokenizer: PreTrainedTokenizerBase, choice: str, after: str) -> int:
    """The token of a choice that stands after a text.

    Raises:
        ConfigError: If it is not one token there.
    """
    added = pieces_after(tokenizer, choice, after)
    if added is not None and len(added) == 1:
        return int(added[0])
    other = choice.lstrip() if choice != choice.lstrip() else f" {choice}"
    also = pieces_after(tokenizer, other, after)
    became = (
        f"changes the tokens of {after!r} itself"
        if added is None
        else f"is {len(added)} tokens there, {tokenizer.convert_ids_to_tokens(added)}"
    )
    hint = f" {other!r} is one token: use that." if also is not None and len(also) == 1 else ""
    raise ConfigError(
        f"A choice must be one token after {after!r}, and {choice!r} {became}.{hint} Letters or "
        "digits are one token in most vocabularies; say with after= how your prompts end."
    )


def pieces_after(tokenizer: PreTrainedTokenizerBase, choice: str, after: str) -> list[int] | None:
    """The tokens that a choice adds behind a text; `None` where it changes those of the text."""
    start, whole = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (after, after + choice)
    )
    return whole[len(start) :] if whole[: len(start)] == start else None
