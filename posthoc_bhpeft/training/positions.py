"""How many tokens a base model can read at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from posthoc_bhpeft.checkpoints import resolve_model
from posthoc_bhpeft.errors import ConfigError

_NAMES = (
    *("position_embeddings", "char_position_embeddings", "wpe"),
    *("embed_positions", "positions_embed", "pos_encoding"),
)
"""What transformers calls a table with a row for each position."""


def most_tokens(base: str) -> int | None:
    """Tokens of a text that a base has positions for; None where nothing limits them.

    A table of positions ends somewhere, and a text that is longer stops a training in its middle.
    Rotary and relative positions, and those of ALiBi, have no end: that a config counts some, or a
    tokenizer, says what the model was trained on and not what it can read. So the model is looked
    at, made of shapes.

    Args:
        base: "minilm", a folder, or a hub name.
    """
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(resolve_model(base))
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    except Exception:  # Classes fail in ways of their own; what is really wrong, loading tells.
        return None
    # The one with ALiBi for so many positions and no more.
    own = [config.max_seq_len] if config.model_type == "mpt" else []
    return min([*own, *_limits(model)], default=None)


def check_positions(base: str, length: int, limit: int | None) -> None:
    """Raise where texts would be longer than a base has positions.

    Raises:
        ConfigError: With how long they may be.
    """
    if limit is not None and length > limit:
        raise ConfigError(
            f"--max-length {length}: {base!r} has positions for {limit} tokens only. Give "
            f"{limit} or fewer, or a base that reads longer texts."
        )


def cut_to(base: str, length: int, limit: int | None) -> tuple[int, tuple[str, ...]]:
    """Tokens that texts are cut at where nobody asked for a number, and a note where it is fewer.

    Args:
        base: For the note.
        length: The usual number.
        limit: Of `most_tokens`.
    """
    if limit is None or length <= limit:
        return length, ()
    return limit, (f"cut at {limit} tokens rather than {length}: {base} has positions for no more",)


def _limits(model: nn.Module) -> Iterator[int]:
    """Tokens that each table of positions has room for."""
    for module in model.modules():
        for name in _NAMES:
            table = getattr(module, name, None)
            weight = getattr(table, "weight", None)
            if isinstance(table, nn.Module) and isinstance(weight, Tensor) and weight.dim() == 2:
                yield len(weight) - _first_row(table)
                # Some give out fewer numbers than the table has rows.
                numbers = getattr(module, "position_ids", None)
                if isinstance(numbers, Tensor):
                    yield numbers.shape[-1]
            elif isinstance(table, Tensor) and table.dim() == 2:
                yield len(table)


def _first_row(table: nn.Module) -> int:
    """The row of the first token: RoBERTa keeps those up to its padding, OPT and BART two."""
    offset = getattr(table, "offset", None)
    if isinstance(offset, int):
        return offset
    padding = getattr(table, "padding_idx", None)
    return padding + 1 if isinstance(padding, int) else 0
