"""Which positions of a text a prediction is about, and some that stand for all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs


def counted_positions(model: nn.Module, inputs: Inputs, outputs: Tensor) -> Tensor:
    """Mask `(N, T)` of the positions of outputs `(N, T, C)` that are no padding.

    Of an encoder-decoder they are those of the decoder.
    """
    given = inputs if isinstance(inputs, Mapping) else {}
    config = getattr(model, "config", None)
    name = "attention_mask"
    if getattr(config, "is_encoder_decoder", False):
        name = "decoder_attention_mask"
        if name not in given and "decoder_input_ids" in given:
            return unpadded(given["decoder_input_ids"], getattr(config, "pad_token_id", None))
    mask = given.get(name)
    if isinstance(mask, Tensor) and mask.shape == outputs.shape[:2]:
        return mask.to(outputs.device) != 0
    return torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device)


def unpadded(ids: Tensor, padding: int | None) -> Tensor:
    """Mask `(N, T)` of ids that are no padding; many decoders start with the padding token."""
    mask = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    mask[:, 0] = True
    return mask


def some_positions(
    counted: Tensor, most: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Up to `most` positions of each text, drawn at random from those that count.

    Args:
        counted: Mask `(N, T)`.
        most: `K`, where any text has so many, else as many as one has.
        generator: Of the draw.

    Returns:
        Positions `(N, K)`, and which of them count, `(N, K)`: a text may have fewer.
    """
    fewer = min(most, int(counted.sum(1).amax())) if len(counted) else 0
    keys = torch.rand(counted.shape, generator=generator).to(counted.device)
    drawn = keys.masked_fill(~counted, -1).topk(fewer, 1)
    return drawn.indices, drawn.values >= 0
