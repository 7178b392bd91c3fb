"""Which modules a hybrid goes into by default, for each model type of transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace

Targets = list[str] | str


@dataclass(frozen=True)
class DefaultTargets:
    """Default targets of one model type: lists of name endings, or a regular expression.

    Attributes:
        lora: Query and value projections (or the fused one).
        feed_forward_in: First linear module of the feed-forward.
        feed_forward_out: Its last linear module.
        layer_norm: The LayerNorm after it where the block normalises last, else None.
        attention: The attention modules, None where a prefix is not possible.
        heads: What is trained whole, where the model has it.
    """

    lora: Targets
    feed_forward_in: Targets
    feed_forward_out: Targets
    layer_norm: Targets | None
    attention: Targets | None
    heads: tuple[str, ...] = ("classifier", "score", "qa_outputs")


_BERT = DefaultTargets(
    lora=["query", "value"],
    # ".output.dense" alone would also match the end of the attention.
    feed_forward_in=r"(.*\.)?layer\.\d+\.intermediate\.dense",
    feed_forward_out=r"(.*\.)?layer\.\d+\.output\.dense",
    layer_norm=r"(.*\.)?layer\.\d+\.output\.LayerNorm",
    attention=["attention.self"],
)
_DISTILBERT = DefaultTargets(
    lora=["q_lin", "v_lin"],
    feed_forward_in=["ffn.lin1"],
    feed_forward_out=["ffn.lin2"],
    layer_norm=["output_layer_norm"],
    attention=["attention"],
    heads=("pre_classifier", "classifier", "qa_outputs"),
)
_ALBERT = DefaultTargets(
    lora=["attention.query", "attention.value"],
    feed_forward_in=["ffn"],
    feed_forward_out=["ffn_output"],
    layer_norm=["full_layer_layer_norm"],
    attention=["attention"],
)
_MODERNBERT = DefaultTargets(
    lora=["attn.Wqkv"],
    feed_forward_in=["mlp.Wi"],
    feed_forward_out=["mlp.Wo"],
    layer_norm=None,
    attention=["attn"],
    heads=("head", "classifier", "qa_outputs"),
)
_LLAMA = DefaultTargets(
    lora=["q_proj", "v_proj"],
    feed_forward_in=["mlp.gate_proj"],
    feed_forward_out=["mlp.down_proj"],
    layer_norm=None,
    attention=["self_attn"],
)
_PHI3 = replace(_LLAMA, lora=["qkv_proj"], feed_forward_in=["mlp.gate_up_proj"])
_GPT2 = DefaultTargets(
    lora=["attn.c_attn"],
    feed_forward_in=["mlp.c_fc"],
    feed_forward_out=["mlp.c_proj"],
    layer_norm=None,
    attention=["attn"],
)
_OPT = DefaultTargets(
    lora=["q_proj", "v_proj"],
    feed_forward_in=["fc1"],
    feed_forward_out=["fc2"],
    layer_norm=None,
    attention=["self_attn"],
)
_GPT_NEOX = DefaultTargets(
    lora=["query_key_value"],
    feed_forward_in=["mlp.dense_h_to_4h"],
    feed_forward_out=["mlp.dense_4h_to_h"],
    layer_norm=None,
    attention=["attention"],
)
_T5 = DefaultTargets(
    lora=["q", "v"],
    # "wi_0" where the feed-forward is gated, "wi" where it is not.
    feed_forward_in=["DenseReluDense.wi", "DenseReluDense.wi_0"],
    feed_forward_out=["DenseReluDense.wo"],
    layer_norm=None,
    attention=["SelfAttention", "EncDecAttention"],
    heads=("classification_head", "classifier", "qa_outputs"),
)
_BART = DefaultTargets(
    lora=["q_proj", "v_proj"],
    feed_forward_in=["fc1"],
    feed_forward_out=["fc2"],
    layer_norm=["final_layer_norm"],
    attention=["self_attn", "encoder_attn"],
    heads=("classification_head", "qa_outputs"),
)
_DEBERTA_V2 = replace(
    _BERT,
    lora=["query_proj", "value_proj"],
    attention=None,
    # Not part of the pretrained weights: transformers starts it at random, like the classifier.
    heads=("pooler", "classifier", "qa_outputs"),
)
_MPNET = replace(_BERT, lora=["attn.q", "attn.v"], attention=None)
_BLOOM = replace(_GPT_NEOX, attention=None)
_GPTJ = replace(
    _LLAMA,
    feed_forward_in=["mlp.fc_in"],
    feed_forward_out=["mlp.fc_out"],
    attention=None,
)

_BY_MODEL_TYPE: dict[str, DefaultTargets] = {
    "albert": _ALBERT,
    "bart": _BART,
    "bert": _BERT,
    "bloom": _BLOOM,
    "camembert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "falcon": _BLOOM,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "gptj": _GPTJ,
    "llama": _LLAMA,
    "mbart": replace(_BART, layer_norm=None),
    "mistral": _LLAMA,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "mt5": _T5,
    "opt": _OPT,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "t5": _T5,
    "xlm-roberta": _BERT,
}

#: LoRA where `shares_positions`.
SHARED_POSITIONS_LORA = ["value_proj", "attention.output.dense"]

#: Heads looked for in a model type without defaults, in the order of a forward pass.
ANY_HEADS = ("pre_classifier", "classification_head", "classifier", "score", "qa_outputs")

#: Keys and values of cross attention: in the decoder, but computed from the encoder's output.
READS_ENCODER = r".*\.(EncDecAttention\.[kv]|encoder_attn\.[kv]_proj)"


def model_types() -> tuple[str, ...]:
    """The model types with defaults, sorted."""
    return tuple(sorted(_BY_MODEL_TYPE))


def default_targets(model_type: str | None) -> DefaultTargets | None:
    """Default targets of a model type, or None if there are none."""
    return _BY_MODEL_TYPE.get(model_type or "")


def shares_positions(config: object) -> bool:
    """Whether the query and key projections also serve relative positions, once for all rows.

    So in every published DeBERTa-v3. What is trained there has no gradient a row.
    """
    names = ("relative_attention", "share_att_key")
    return all(getattr(config, name, False) for name in names)
