"""One scalar an input for every part, in the manner of UniPELT (https://arxiv.org/abs/2110.07577).

`g = mean over real tokens of sigmoid(w . h_t + b)`, where `h` is the direct input of LoRA or of
the adapter, and the attention's input for the prefix. UniPELT averages over padding too, which
makes the output of a text depend on what it is batched with; here the mask keeps padding out.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from posthoc_bhpeft.errors import HybridError

#: Which text a module works on: a decoder of an encoder-decoder has its own tokens.
ENCODER, DECODER = "attention_mask", "decoder_attention_mask"


class TokenMask:
    """The masks of the forward pass now running; filled by a pre-hook on the whole model.

    The masks stay until the next forward pass, because gradient checkpointing runs layers again
    during the backward pass. Copies and pickles leave them out.
    """

    def __init__(self) -> None:
        self._masks: dict[str, torch.Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the masks from the arguments of a model's forward (a forward pre-hook)."""
        names = list(inspect.signature(module.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        tokens = _first(given, "input_ids", "inputs_embeds")
        if tokens is None:
            return
        mask = given.get(ENCODER)
        self._masks[ENCODER] = tokens.new_ones(tokens.shape[:2]) if mask is None else mask
        self._masks[DECODER] = self._decoder_mask(given)

    def _decoder_mask(self, given: dict[str, Any]) -> torch.Tensor:
        mask = given.get(DECODER)
        if isinstance(mask, torch.Tensor):
            return mask
        tokens = _first(given, "decoder_input_ids", "decoder_inputs_embeds")
        # T5 and BART classifiers make the decoder's text by shifting the encoder's to the right.
        return self._masks[ENCODER] if tokens is None else tokens.new_ones(tokens.shape[:2])

    def average(self, values: torch.Tensor, stream: str) -> torch.Tensor:
        """Mean over the real tokens.

        Args:
            values: (N, T, 1), or (N T, 1) from models that flatten their feed-forward's input.
            stream: `ENCODER` or `DECODER`.

        Returns:
            (N, 1, 1), or (N T, 1) for flattened values: every token gets its text's scalar.

        Raises:
            HybridError: If the mask does not fit the values.
        """
        mask = self._masks.get(stream)
        if mask is None or mask.dim() != 2 or mask.numel() != values.numel():
            got = "none" if mask is None else tuple(mask.shape)
            raise HybridError(
                f"A gate has values of shape {tuple(values.shape)} and a mask of shape {got}. It "
                "needs the attention mask of the same tokens, shape (N, T). Call the model with "
                "`input_ids` and a 2-D `attention_mask`, with chunk_size_feed_forward=0 and no "
                "cache, or train without gates."
            )
        weights = mask.to(device=values.device, dtype=values.dtype)
        total = (values.reshape(mask.shape) * weights).sum(1)
        mean = (total / weights.sum(1).clamp(min=1))[:, None, None]
        return mean if values.dim() == 3 else mean.expand(*mask.shape, 1).reshape(values.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"_masks": {}}


@dataclass(frozen=True)
class GateMask:
    """The mask a module's gates average with."""

    tokens: TokenMask
    stream: str


def run_gate(gate: nn.Module, hidden: torch.Tensor, mask: GateMask | None) -> torch.Tensor:
    """`mean_t sigmoid(w . h_t + b)` in the gate's own dtype; shapes as in `TokenMask.average`."""
    assert mask is not None, "a module with gates is given its mask when they are added"
    weight = gate.weight
    assert isinstance(weight, torch.Tensor)
    return mask.tokens.average(torch.sigmoid(gate(hidden.to(weight.dtype))), mask.stream)


def _first(given: dict[str, Any], *names: str) -> torch.Tensor | None:
    return next((given[name] for name in names if given.get(name) is not None), None)
