"""Generation with uncertainty against explicit loops over draws, rows and positions."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, StoppingCriteria, StopStringCriteria

from posthoc_bhpeft import (
    MAP,
    FixedPrecision,
    Sampled,
    Tangent,
    Tokens,
    bayesianize,
    generate_with_uncertainty,
)
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.generation import TeacherForcing, part_of_text
from posthoc_bhpeft.predictive.sampled import drawn_parameters
from tests.hybrid.families import FIRST_WORD, PAD
from tests.models import mlp, pairs, seeded
from tests.tasks.tiny import hybrid, language_model, lora, tuned

WORDS, NEW, SAMPLES = 12, 4, 3
TARGETS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "t5": ("q", "v")}


def fitted(family, precision=20.0):
    """A posterior over a tiny generator, whose texts may end with token 2."""
    if family == "t5":
        config = lora("SEQ_2_SEQ_LM", *TARGETS[family])
        model = tuned("AutoModelForSeq2SeqLM", family, config, vocab_size=WORDS)
    elif family == "hybrid":
        model = language_model("llama", hybrid(), vocab_size=WORDS)
    else:
        model = language_model(family, lora("CAUSAL_LM", *TARGETS[family]), vocab_size=WORDS)
    batch = prompts()
    if family == "t5":
        batch |= {"decoder_input_ids": batch["input_ids"]}
    batch["labels"] = batch["input_ids"].where(batch["attention_mask"] == 1, -100)
    return bayesianize(
        model,
        [batch],
        likelihood=Tokens(shift=family != "t5"),
        prior=FixedPrecision(precision),
        progress=False,
    )


def prompts():
    """Two prompts of different lengths, padded on the left."""
    ids = torch.randint(FIRST_WORD, WORDS, (2, 5), generator=seeded())
    ids[1, :2] = PAD
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def next_token(bayes, parameters, row, generated: Tensor) -> Tensor:
    """Distribution of the token after a row's own prompt, without padding, and some tokens."""
    given = prompts()
    prompt = given["input_ids"][row][given["attention_mask"][row] == 1]
    if bayes.model.config.is_encoder_decoder:
        inputs = {"input_ids": prompt[None], "decoder_input_ids": generated[None]}
    else:
        inputs = {"input_ids": torch.cat([prompt, generated])[None]}
    result = torch.func.functional_call(bayes.model, parameters, (), inputs)
    return result.logits[0, -1].detach().softmax(-1)


@pytest.mark.parametrize("family", [*TARGETS, "hybrid"])
def test_each_token_is_judged_as_by_a_loop_over_draws_and_positions(family):
    bayes, drawing = fitted(family), Sampled(SAMPLES, seed=1)
    found = generate_with_uncertainty(
        bayes,
        prompts(),
        drawing=drawing,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[PAD],  # random weights would write it
    )
    draws = list(drawn_parameters(bayes.model, bayes.posterior, SAMPLES, 1))
    start = found.sequences.shape[1] - NEW
    assert torch.equal(found.tokens, found.sequences[:, start:])
    assert bool(found.mask.all())
    for row in range(2):
        seen = found.sequences[row, :1] if family == "t5" else found.tokens[row, :0]
        for t, token in enumerate(found.tokens[row]):
            each = torch.stack([next_token(bayes, one, row, seen) for one in draws])
            entropies = -(each * each.log()).sum(-1)
            mean = each.mean(0)
            total = -(mean * mean.log()).sum()
            close = {"rtol": 1e-4, "atol": 1e-6}  # rotary embeddings are in float32
            assert torch.allclose(found.total[row, t], total, **close)
            assert torch.allclose(found.aleatoric[row, t], entropies.mean(), **close)
            assert torch.allclose(found.epistemic[row, t], total - entropies.mean(), **close)
            by_draw = found.log_probabilities[:, row, t]
            assert torch.allclose(by_draw, each[:, token].log(), **close)
            seen = torch.cat([seen, token[None]])
    of_text = found.log_probabilities.sum(2)
    assert torch.allclose(found.sequence_log_probability, of_text.mean(0))
    assert torch.allclose(found.sequence_spread, of_text.std(0))
    assert torch.allclose(found.sequence_epistemic, found.epistemic.mean(1))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_text_is_the_models_own_and_the_model_stays_as_it_was(family):
    bayes = fitted(family)
    before = {name: p.clone() for name, p in bayes.model.named_parameters()}
    own = bayes.model.generate(**prompts(), max_new_tokens=NEW, do_sample=False)
    found = generate_with_uncertainty(bayes, prompts(), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(found.sequences, own)
    assert len(found.log_probabilities) == Tangent().samples
    assert all(torch.equal(before[name], p) for name, p in bayes.model.named_parameters())


def test_nothing_counts_after_the_end_of_a_text():
    bayes, given = fitted("llama"), {"max_new_tokens": NEW, "do_sample": False}
    tokens = generate_with_uncertainty(bayes, prompts(), **given, min_new_tokens=NEW).tokens
    end = int(tokens[0, 1])
    found = generate_with_uncertainty(bayes, prompts(), **given, eos_token_id=end)
    for row, text in zip(found.mask.tolist(), found.tokens.tolist(), strict=True):
        length = text.index(end) + 1 if end in text else len(text)
        assert row == [t < length for t in range(len(text))]
    assert found.lengths[0] <= 2 < found.tokens.shape[1] or bool((found.lengths <= 2).all())
    assert not bool(found.total[~found.mask].any())
    assert not bool(found.log_probabilities[:, ~found.mask].any())


def counted(tokens, options, stopped=()):
    """Tokens of each text, after a prompt of one token."""
    sequences = torch.nn.functional.pad(torch.tensor(tokens), (1, 0), value=9)
    mask = part_of_text(torch.nn.Linear(1, 1), sequences, 1, options, stopped)
    lengths = mask.sum(1)
    assert torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None])
    return lengths.tolist()


def test_tokens_of_padding_are_written_where_nothing_ended_the_text():
    tokens = [[5, 1, 6, 1], [1, 1, 1, 1], [5, 7, 2, 1]]
    assert counted(tokens, {"pad_token_id": 1, "eos_token_id": []}) == [4, 4, 4]
    assert counted(tokens, {"pad_token_id": 1, "eos_token_id": 2}) == [4, 4, 3]
    assert counted([[5, 2, 2], [2, 2, 2]], {"pad_token_id": 2, "eos_token_id": 2}) == [2, 1]


def test_a_text_ends_where_a_criterion_ended_it():
    both = {"pad_token_id": 2, "eos_token_id": 2}
    stopped = {(9, 5), (9, 5, 2), (9, 6, 7, 8)}
    assert counted([[5, 2, 2], [6, 7, 8], [6, 2, 2]], both, stopped) == [1, 3, 2]


class FirstRowStops(StoppingCriteria):
    """Ends the first text after some tokens; it counts its calls, so each may be one only."""

    def __init__(self, tokens):
        self.left = tokens

    def __call__(self, input_ids, scores, **_):
        self.left -= 1
        return torch.tensor([self.left == 0, *[False] * (len(input_ids) - 1)])


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("pad", [PAD, 2])
def test_padding_after_a_stop_is_no_text_whatever_its_token(family, pad):
    found = generate_with_uncertainty(
        fitted(family),
        prompts(),
        max_new_tokens=NEW,
        min_new_tokens=NEW,  # no token ends a text
        do_sample=False,
        pad_token_id=pad,
        stopping_criteria=[FirstRowStops(2)],
    )
    assert found.tokens[0, 2:].tolist() == [pad] * (NEW - 2)
    assert found.lengths.tolist() == [2, NEW]


def letters():
    """A tokenizer of one letter a token."""
    known = {one: index for index, one in enumerate(("<s>", "<pad>", "</s>", *"abcdefghi"))}
    inner = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_text_ends_with_its_stop_string(own, beams):
    bayes, words = fitted("llama"), letters()
    given = {"do_sample": False, "num_beams": beams, "min_new_tokens": NEW, "max_new_tokens": NEW}
    given["suppress_tokens"] = [0, 1]
    plain = generate_with_uncertainty(bayes, prompts(), **given).tokens
    stop = words.convert_ids_to_tokens(int(plain[0, 1]))
    if own:
        given["stopping_criteria"] = [StopStringCriteria(words, [stop])]
    else:
        given |= {"stop_strings": [stop], "tokenizer": words}
    found = generate_with_uncertainty(bayes, prompts(), **given, pad_token_id=2)
    assert int(found.lengths.min()) < NEW
    for text, length in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True):
        said = [stop in word for word in words.convert_ids_to_tokens(text)]
        assert length == (said.index(True) + 1 if any(said) else NEW)


def test_texts_are_judged_with_the_token_types_they_were_written_with():
    bayes = fitted("gpt2")
    given = {**prompts(), "token_type_ids": torch.full((2, 5), 7)}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_logits": True}
    own = bayes.model.eval().generate(**given, **options, return_dict_in_generate=True)
    forcing = TeacherForcing.of(bayes.model, given, own.sequences, {})
    with torch.no_grad():
        judged = bayes.model(**forcing.inputs).logits[:, -3:]
    assert torch.allclose(judged, torch.stack(own.logits, 1).to(judged), atol=1e-4)
    assert torch.equal(generate_with_uncertainty(bayes, given, **options).sequences, own.sequences)


def test_positions_that_were_given_go_on():
    given = {**prompts(), "position_ids": torch.tensor([[3, 4, 5, 6, 7], [0, 0, 0, 1, 2]])}
    sequences = torch.cat([given["input_ids"], given["input_ids"][:, :3]], 1)
    forcing = TeacherForcing.of(fitted("gpt2").model, given, sequences, {})
    assert forcing.inputs["position_ids"][:, 5:].tolist() == [[8, 9], [3, 4]]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_inputs_that_do_not_go_on_are_refused_by_name(family):
    with pytest.raises(DataError, match="labels of the prompt cannot be told"):
        generate_with_uncertainty(fitted(family), {**prompts(), "labels": prompts()["input_ids"]})
    name = "decoder_attention_mask" if family == "t5" else "pixel_values"
    with pytest.raises(DataError, match=f"{name} of the prompt"):
        generate_with_uncertainty(fitted(family), {**prompts(), name: torch.ones(2, 5)})


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_empty_prompts_are_refused(family):
    bayes = fitted(family)
    with pytest.raises(DataError, match=r"'input_ids' is \(2, 0\)"):
        generate_with_uncertainty(bayes, {"input_ids": prompts()["input_ids"][:, :0]})
    mask = prompts()["attention_mask"]
    mask[1] = 0
    with pytest.raises(DataError, match="prompt in row 1 is empty"):
        generate_with_uncertainty(bayes, {**prompts(), "attention_mask": mask})


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_several_texts_a_prompt(family):
    bayes, options = fitted(family), {"max_new_tokens": 2, "min_new_tokens": 2}
    found = generate_with_uncertainty(
        bayes, prompts(), drawing=Sampled(2), num_beams=2, num_return_sequences=2, **options
    )
    assert found.total.shape == (4, 2)
    (parameters, _) = drawn_parameters(bayes.model, bayes.posterior, 2, 0)
    before = found.sequences[2, :1] if family == "t5" else found.tokens[2, :0]
    first = next_token(bayes, parameters, 1, before)[found.tokens[2, 0]].log()
    assert torch.allclose(found.log_probabilities[0, 2, 0], first, rtol=1e-4)


def test_a_certain_posterior_has_no_epistemic_part():
    found = generate_with_uncertainty(fitted("llama", 1e12), prompts(), max_new_tokens=NEW)
    assert bool((found.epistemic < 1e-5).all())
    assert bool((found.sequence_spread < 1e-3).all())
    assert bool((found.total[found.mask] > 0.1).all())


def test_one_draw_has_no_spread():
    found = generate_with_uncertainty(
        fitted("llama"), prompts(), drawing=Tangent(1), max_new_tokens=2
    )
    assert found.sequence_spread.tolist() == [0, 0]


def test_what_cannot_generate_is_refused_in_words():
    bayes = fitted("llama")
    with pytest.raises(ConfigError, match=r"MAP\(\) draws no weights.*Tangent\(\)"):
        generate_with_uncertainty(bayes, prompts(), drawing=MAP())
    right = {name: column.flip(1) for name, column in prompts().items()}
    with pytest.raises(DataError, match="padding_side = 'left'"):
        generate_with_uncertainty(bayes, right)
    with pytest.raises(DataError, match="'input_ids'"):
        generate_with_uncertainty(bayes, {"inputs_embeds": torch.zeros(1, 2, 32)})
    classifier = bayesianize(mlp(3, 2), pairs((4, 3), 2), progress=False)
    with pytest.raises(ModelError, match=r"no generate\(\)"):
        generate_with_uncertainty(classifier, prompts(), drawing=Sampled(2))
