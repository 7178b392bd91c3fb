"""Tiny random models of every supported family, and a padded batch for each.

Everything is float64, on the CPU, in eval mode and the same in every process. The weights are
larger than a fresh initialisation would give, so that each part has a visible effect on the logits.
Attention written in plain Python ("eager", the only one of Gemma2, DeBERTa-v2 and MPNet) may take
its softmax in float32: there, compare with a tolerance of about 1e-6.
"""

# ruff: noqa: C408  (dict(key=value) reads better in a table of configs)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN, LAYERS, HEADS, FEED_FORWARD, VOCABULARY, POSITIONS = 32, 2, 4, 48, 60, 64
BEGIN, PAD, END, FIRST_WORD = 0, 1, 2, 3

Batch = dict[str, torch.Tensor]

_ENCODER = dict(
    hidden_size=HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=FEED_FORWARD,
    max_position_embeddings=POSITIONS,
)
_DECODER = dict(_ENCODER, num_key_value_heads=2)
_ENCODER_DECODER = dict(d_model=HIDDEN, num_layers=LAYERS, num_heads=HEADS)

#: Family name -> (transformers model type, what its config needs to be tiny).
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _ENCODER),
    "roberta": ("roberta", _ENCODER),
    "electra": ("electra", dict(_ENCODER, embedding_size=16)),
    "distilbert": (
        "distilbert",
        dict(
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=FEED_FORWARD,
            max_position_embeddings=POSITIONS,
        ),
    ),
    "albert": ("albert", dict(_ENCODER, embedding_size=16)),
    "modernbert": ("modernbert", dict(_ENCODER, local_attention=6, global_attn_every_n_layers=2)),
    "llama": ("llama", _DECODER),
    "qwen2": ("qwen2", _DECODER),
    "qwen3": ("qwen3", dict(_DECODER, head_dim=16)),
    "mistral": ("mistral", dict(_DECODER, sliding_window=4)),
    "gemma2": ("gemma2", dict(_DECODER, head_dim=16, sliding_window=64, query_pre_attn_scalar=16)),
    "phi3": ("phi3", dict(_DECODER, sliding_window=None)),
    "gpt2": (
        "gpt2",
        dict(
            n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FEED_FORWARD, n_positions=POSITIONS
        ),
    ),
    "opt": (
        "opt",
        dict(
            hidden_size=HIDDEN,
            word_embed_proj_dim=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=FEED_FORWARD,
            max_position_embeddings=POSITIONS,
        ),
    ),
    "gpt_neox": ("gpt_neox", _ENCODER),
    "t5": (
        "t5",
        dict(_ENCODER_DECODER, d_kv=8, d_ff=FEED_FORWARD, decoder_start_token_id=BEGIN),
    ),
    "bart": (
        "bart",
        dict(
            d_model=HIDDEN,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=FEED_FORWARD,
            decoder_ffn_dim=FEED_FORWARD,
            max_position_embeddings=POSITIONS,
            decoder_start_token_id=END,
            forced_eos_token_id=None,
        ),
    ),
    "deberta_v2": (
        "deberta-v2",
        dict(
            _ENCODER,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["c2p", "p2c"],
            type_vocab_size=0,
        ),
    ),
    "mpnet": ("mpnet", _ENCODER),
}

#: Families whose attention offers no public hook for a prefix.
WITHOUT_PREFIX = ("deberta_v2", "mpnet")

#: Families that transformers runs with its own attention only.
EAGER_ONLY = (*WITHOUT_PREFIX, "gemma2")


def tiny_config(name: str, *, num_labels: int = 3, **overrides: Any) -> PretrainedConfig:
    """The config of one family, a few thousand weights large."""
    model_type, sizes = _CONFIGS[name]
    settings: dict[str, Any] = dict(
        sizes,
        vocab_size=VOCABULARY,
        num_labels=num_labels,
        bos_token_id=BEGIN,
        pad_token_id=PAD,
        eos_token_id=END,
        sep_token_id=END,
        cls_token_id=BEGIN,
    )
    settings.update(overrides)
    return CONFIG_MAPPING[model_type](**settings)


def tiny_model(
    name: str,
    *,
    num_labels: int = 3,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """A random sequence classifier of one family; leaves the global random state alone.

    Args:
        name: A key of `families()`.
        num_labels: Number of outputs C.
        dtype: Of all weights.
        attention: `"sdpa"` or `"eager"`; families without the choice take `"eager"`.
        seed: Same seed, same weights.
        overrides: Further config values.
    """
    if name in EAGER_ONLY:
        attention = "eager"
    config = tiny_config(name, num_labels=num_labels, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention
        )
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.15 if parameter.dim() > 1 else 0.05
                parameter.add_(spread * torch.randn_like(parameter))
    return model.to(dtype).eval()


def families() -> dict[str, Callable[[], PreTrainedModel]]:
    """Family name -> function that builds its tiny float64 classifier with three classes."""
    return {name: partial(tiny_model, name) for name in _CONFIGS}


def tiny_batch(
    model: torch.nn.Module,
    rows: int = 4,
    positions: int = 9,
    *,
    padding: bool = True,
    labels: bool = True,
    seed: int = 0,
) -> Batch:
    """Random token ids, right-padded to different lengths, with an attention mask and labels.

    Every row ends with exactly one END token, which T5 and BART read their summary from.

    Args:
        model: A model of `families()`, bare or inside a peft model.
        rows: Batch size N.
        positions: Length T; with `padding`, only the first row is that long.
        padding: False gives every row the full length.
        labels: Add `labels` (N,).
        seed: Same seed, same batch.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, VOCABULARY, (rows, positions), generator=generator)
    lengths = torch.full((rows,), positions)
    if padding:
        lengths = positions - (2 * torch.arange(rows)) % (positions - 2)
    mask = (torch.arange(positions) < lengths[:, None]).long()
    ids[torch.arange(rows), lengths - 1] = END
    batch = {"input_ids": ids.where(mask.bool(), torch.tensor(PAD)), "attention_mask": mask}
    if labels:
        batch["labels"] = torch.randint(0, int(config.num_labels), (rows,), generator=generator)
    return batch


def tiny_loader(
    model: torch.nn.Module, batches: int = 2, rows: int = 4, **kwargs: Any
) -> list[Batch]:
    """A few different batches in a list, which is a sized iterable of dicts."""
    return [tiny_batch(model, rows, seed=seed, **kwargs) for seed in range(batches)]


def single_rows(batch: Batch) -> list[Batch]:
    """Each row of a padded batch alone, without its padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {
            key: value[row : row + 1, :length] if value.dim() > 1 else value[row : row + 1]
            for key, value in batch.items()
        }
        for row, length in enumerate(lengths)
    ]
