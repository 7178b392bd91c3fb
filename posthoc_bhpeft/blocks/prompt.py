"""Blocks of virtual tokens put before the text: prompt tuning and P-tuning.

peft repeats one `(T, d)` matrix over the rows of a batch, in front of the embedded words. The
gradient there is the per-sample gradient, so the block is that matrix, tokens in rows. While
P-tuning trains, the matrix is the output of a network that is run once a batch; a checkpoint holds
its result, and that is the block. `prompts` says so to those who have the network still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, PeftType
from torch import Tensor, nn

from posthoc_bhpeft.blocks.block import Block, Kind, MatrixView, Observation, join
from posthoc_bhpeft.blocks.prefix import virtual_token_observation
from posthoc_bhpeft.errors import DataError, ModelError


def prompt_blocks(path: str, module: nn.Module) -> Iterator[Block]:
    """The active prompt `(T, d)`, of prompt tuning or of a P-tuning that was loaded."""
    if not isinstance(module, PeftModel):
        return
    config = module.active_peft_config
    if config.peft_type not in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
        return
    inside = f"prompt_encoder.{module.active_adapter}.embedding.weight"
    weight = module.get_parameter(inside)
    # Sequence-to-sequence models have two prompts in one matrix, and read one.
    if weight.requires_grad and len(weight) == config.num_virtual_tokens:
        name = join(path, inside)
        view = MatrixView((weight.shape[0], weight.shape[1]))
        site = GivenEmbeddings(reads_last=hasattr(module.base_model, "score"))
        tap = VirtualTokens(len(weight))
        yield Block(name, Kind.PREFIX, name, join(path, "base_model"), view, tap, site)


@dataclass(frozen=True)
class GivenEmbeddings:
    """Site: the embeddings that a model is given in place of token ids, `(N, T + L, d)`.

    Attributes:
        reads_last: Whether the model answers at the last position, as decoders do. Without ids they
            cannot tell which one is padding.
    """

    reads_last: bool

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The keyword `inputs_embeds`."""
        found = kwargs.get("inputs_embeds")
        if not isinstance(found, Tensor):
            raise ModelError(
                "The model was not given inputs_embeds, where peft puts virtual tokens. Pass the "
                "PeftModel itself, not its base model."
            )
        mask = kwargs.get("attention_mask")
        if self.reads_last and isinstance(mask, Tensor) and not bool(mask[:, -1].all()):
            raise DataError(
                "With virtual tokens this decoder sees embeddings only and answers at the last "
                f"position, which is padding in {int((mask[:, -1] == 0).sum())} of {len(mask)} "
                "rows of a batch: their answers would depend on the other rows. Pad on the left "
                '(tokenizer.padding_side = "left"; saved into the checkpoint with '
                "tokenizer.save_pretrained, the command line does it too)."
            )
        return found


@dataclass(frozen=True)
class VirtualTokens:
    """Tap of `GivenEmbeddings`: the first `tokens` positions."""

    tokens: int

    def __call__(self, module_input: Tensor, cotangent: Tensor, n_rows: int) -> Observation:
        return virtual_token_observation(cotangent[:, : self.tokens], n_rows)
