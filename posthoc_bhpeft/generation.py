r"""Generation with uncertainty: what the weights' uncertainty says about every generated token.

The text is the one that the model's own `generate` writes, at its trained weights. Draws of the
posterior then read it (teacher forcing), and with `p_st` the distribution of token `t` under draw
`s`, given the tokens before it,

    total_t = H[1/S sum_s p_st],  aleatoric_t = 1/S sum_s H[p_st],  epistemic_t = total - aleatoric.

By the chain rule the sum of `epistemic_t` is the information that a whole text holds about the
weights, but for that draws are not reweighed by the tokens already read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posthoc_bhpeft.batches import Inputs, device_of, evaluating
from posthoc_bhpeft.bayesian import BayesianPeft
from posthoc_bhpeft.errors import ConfigError, DataError, ModelError
from posthoc_bhpeft.memory import explaining_memory
from posthoc_bhpeft.posterior import Posterior
from posthoc_bhpeft.predictive.mixture import Mixture
from posthoc_bhpeft.tasks import base_of


class Drawing(Protocol):
    """A predictive that draws outputs: `Tangent`, `Sampled`."""

    def draws(
        self, model: nn.Module, posterior: Posterior, inputs: Inputs, *, positions: bool
    ) -> Iterator[Tensor]:
        """Outputs `(N, T, C)` at one draw after another."""
        ...


@dataclass(frozen=True)
class Generation:
    """Generated texts with their uncertainty; entropies and log probabilities are in nats.

    Attributes:
        sequences: `(N, ...)`, what `generate` returned.
        tokens: `(N, G)`, the generated tokens alone.
        mask: `(N, G)`, whether a token is part of the text: the end-of-text token is, and that at
            which a stopping criterion ended the text; padding after it is not.
        total: `(N, G)`, entropy of each token's predictive; 0 where the mask is off, as below.
        aleatoric: `(N, G)`, the part that would remain if the weights were known.
        epistemic: `(N, G)`, `total - aleatoric`.
        log_probabilities: `(S, N, G)`, of each token under each draw.
    """

    sequences: Tensor
    tokens: Tensor
    mask: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_probabilities: Tensor

    @property
    def lengths(self) -> Tensor:
        """`(N,)`, tokens in each text."""
        return self.mask.sum(1)

    @property
    def sequence_epistemic(self) -> Tensor:
        """`(N,)`, epistemic uncertainty of a text, the mean over its tokens."""
        return self.epistemic.sum(1) / self.lengths.clamp_min(1)

    @property
    def sequence_log_probability(self) -> Tensor:
        """`(N,)`, mean over draws of a text's log probability."""
        return self.log_probabilities.sum(2).mean(0)

    @property
    def sequence_spread(self) -> Tensor:
        """`(N,)`, standard deviation over draws of a text's log probability; 0 for one draw."""
        each = self.log_probabilities.sum(2)
        return each.std(0, correction=min(1, len(each) - 1))


def generate_with_uncertainty(
    bayes: BayesianPeft,
    inputs: Mapping[str, Any],
    *,
    drawing: Drawing | None = None,
    **options: Any,
) -> Generation:
    """Generate, and say how sure the model may be of each token.

    ```python
    prompts = tokenizer(["Once upon a time"], return_tensors="pt", padding=True)   # padded left
    generation = generate_with_uncertainty(bayes, prompts, max_new_tokens=20)
    generation.epistemic, generation.sequence_epistemic
    ```

    Args:
        bayes: Over a causal language model or an encoder-decoder.
        inputs: Keyword arguments of `generate`: `input_ids`, `attention_mask`, and of a causal
            model no others than `token_type_ids` and `position_ids`; the texts are judged with what
            they were written with. Prompts of a causal model are padded on the left, as `generate`
            needs them.
        drawing: How draws of the weights are made: `Tangent()` or `Sampled()`; by default as in
            `bayes.predictive`.
        options: Of the model's `generate`: `max_new_tokens`, `do_sample`, `num_beams`,
            `stopping_criteria` and so on.

    Returns:
        The tokens that `generate` gives by itself, and their uncertainty.

    Raises:
        ConfigError: If `drawing` makes no draws.
        DataError: If there are no token ids, prompts are empty or padded on the right, or an input
            cannot go on to the texts.
        ModelError: If the model does not generate, or its weights changed since the fit.
    """
    chosen, model = chosen_drawing(bayes, drawing), bayes.model
    given = checked_prompts(model, inputs)
    bayes.check_unchanged()
    with evaluating(model), torch.no_grad(), explaining_memory():
        asked, stopped = noting_stops(model, options)
        result = generator_of(model)(**given, **asked)
        sequences = getattr(result, "sequences", result)
        forcing = TeacherForcing.of(model, given, sequences, options, stopped)
        draws = chosen.draws(model, bayes.posterior, forcing.inputs, positions=True)
        return forcing.judged(draws)


@dataclass(frozen=True)
class TeacherForcing:
    """Generated texts, ready to be read by the model.

    Attributes:
        inputs: Of its forward pass; the last outputs are about `tokens`.
        sequences: As generated.
        tokens: `(N, G)`.
        mask: `(N, G)`.
    """

    inputs: Mapping[str, Any]
    sequences: Tensor
    tokens: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        given: Mapping[str, Tensor],
        sequences: Tensor,
        options: Mapping[str, Any],
        stopped: Collection[tuple[int, ...]] = (),
    ) -> TeacherForcing:
        """From prompts, texts `(N R, ...)`, `R` for each prompt, and the options of `generate`.

        Args:
            model: That wrote them.
            given: The prompts, and what else it was given.
            sequences: As generated.
            options: Of `generate`.
            stopped: The texts at which a stopping criterion said so, see `noting_stops`.
        """
        repeats = len(sequences) // len(given["input_ids"])
        given = {name: value.repeat_interleave(repeats, 0) for name, value in given.items()}
        if is_encoder_decoder(model):
            start = given["decoder_input_ids"].shape[1] if "decoder_input_ids" in given else 1
            mask = part_of_text(model, sequences, start, options, stopped)
            inputs = {**given, "decoder_input_ids": sequences[:, :-1]}
        else:
            prompt = given["attention_mask"]
            start = prompt.shape[1]
            mask = part_of_text(model, sequences, start, options, stopped)
            seen = torch.cat([prompt, mask.to(prompt)], 1)[:, :-1]
            inputs = {"input_ids": sequences[:, :-1], "attention_mask": seen}
            if "position_ids" in inspect.signature(base_of(model).forward).parameters:
                # As generate counts them: from the first token that is no padding.
                inputs["position_ids"] = (seen.cumsum(1) - 1).clamp_min(0)
            inputs |= gone_on(given, seen.shape[1])
        return cls(inputs, sequences, sequences[:, start:], mask)

    def judged(self, draws: Iterable[Tensor]) -> Generation:
        """What draws of outputs `(N, T, V)` say about the tokens."""
        found: list[Tensor] = []

        def about_tokens() -> Iterator[Tensor]:
            for outputs in draws:
                logits = outputs[:, outputs.shape[1] - self.tokens.shape[1] :]
                each = logits.log_softmax(-1).gather(-1, self.tokens[..., None]).squeeze(-1)
                found.append(each * self.mask)
                yield logits

        mixture = Mixture.of(about_tokens())
        total, epistemic = mixture.total * self.mask, mixture.epistemic * self.mask
        return Generation(
            self.sequences,
            self.tokens,
            self.mask,
            total,
            total - epistemic,
            epistemic,
            torch.stack(found),
        )


def chosen_drawing(bayes: BayesianPeft, drawing: Drawing | None) -> Drawing:
    """The predictive that draws, unless it cannot."""
    chosen: Any = bayes.predictive if drawing is None else drawing
    if not hasattr(chosen, "draws"):
        raise ConfigError(
            f"{chosen} draws no weights that could read a text again. Pass drawing=Tangent() or "
            "drawing=Sampled()."
        )
    drawn: Drawing = chosen
    return drawn


def generator_of(model: nn.Module) -> Callable[..., Any]:
    """A model's own `generate`."""
    generate: Any = getattr(model, "generate", None)
    if generate is None:
        raise ModelError(
            f"{type(model).__name__} has no generate(). Use the posterior of a language model: "
            "AutoModelForCausalLM with Tokens(shift=True), or AutoModelForSeq2SeqLM with Tokens()."
        )
    found: Callable[..., Any] = generate
    return found


def checked_prompts(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The prompts on the model's device, with an attention mask."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise DataError(
            f"Generation needs 'input_ids' (N, T), got {sorted(inputs)}. Use what the tokenizer "
            "returns: tokenizer(prompts, padding=True, return_tensors='pt')."
        )
    if ids.numel() == 0:
        raise DataError(
            f"Generation needs a token to go on from, and 'input_ids' is {tuple(ids.shape)}. Begin "
            "an empty prompt with the mark of a beginning, tokenizer.bos_token_id."
        )
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    check_only_tokens(model, inputs)
    if empty := (mask == 0).all(1).nonzero().flatten().tolist():
        raise DataError(
            f"The prompt in row {empty[0]} is empty: its attention mask is zero everywhere. Leave "
            "the row out, or begin it with the mark of a beginning, tokenizer.bos_token_id."
        )
    if not is_encoder_decoder(model) and bool((mask[:, -1] == 0).any()):
        raise DataError(
            "A prompt is padded on the right, and a causal model would write on after the padding. "
            "Set tokenizer.padding_side = 'left'."
        )
    device = device_of(model)
    given = {**inputs, "attention_mask": mask}
    return {name: one.to(device) for name, one in given.items() if isinstance(one, Tensor)}


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether generated texts are those of a decoder with inputs of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def check_only_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise where a prompt comes with something that the text after it cannot be judged with.

    Raises:
        DataError: By name.
    """
    known = {"input_ids", "attention_mask"}
    if is_encoder_decoder(model):
        # All else that an encoder reads stays as it is, whatever the decoder writes.
        decoder = {name for name in inputs if name.startswith("decoder_")}
        others = decoder - {"decoder_input_ids"} | {"labels"} & set(inputs)
    else:
        others = set(inputs) - known - GOES_ON.keys()
    if given := sorted(name for name in others if inputs[name] is not None):
        raise DataError(
            f"A text is judged with what it was written with, and {', '.join(given)} of the prompt "
            "cannot be told for the tokens after it. Leave it out; options of generate, such as "
            "max_new_tokens, are arguments of their own."
        )


def repeated(values: Tensor, count: int) -> Tensor:
    """The last value of each row, so many times."""
    return values[:, -1:].expand(-1, count)


def counted_on(values: Tensor, count: int) -> Tensor:
    """The numbers after the last value of each row."""
    return values[:, -1:] + torch.arange(1, count + 1, device=values.device)


GOES_ON: dict[str, Callable[[Tensor, int], Tensor]] = {
    "token_type_ids": repeated,
    "position_ids": counted_on,
}
"""Inputs of a prompt with one value a token, and how `generate` goes on with them."""


def gone_on(given: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Those of `GOES_ON` that a prompt came with, for all tokens of so long a text."""
    return {
        name: torch.cat([given[name], rest(given[name], length - given[name].shape[1])], 1)
        for name, rest in GOES_ON.items()
        if name in given
    }


class NotingStops:
    """A stopping criterion that keeps the texts it ended.

    Afterwards nothing else tells padding from a text that ends with the same token.
    """

    def __init__(self, criterion: Callable[..., Any], stopped: set[tuple[int, ...]]) -> None:
        self.criterion = criterion
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        """What the criterion says, for texts `(N, T)` so far."""
        done = self.criterion(input_ids, scores, **options)
        ended = torch.as_tensor(done, device=input_ids.device).expand(len(input_ids))
        self.stopped.update(map(tuple, input_ids[ended].tolist()))
        return done


def noting_stops(
    model: nn.Module, options: Mapping[str, Any]
) -> tuple[dict[str, Any], set[tuple[int, ...]]]:
    """Options of `generate` whose stopping criteria fill a set with the texts they end."""
    stopped: set[tuple[int, ...]] = set()
    criteria: list[Any] = []
    for one in options.get("stopping_criteria") or ():
        if type(one).__module__.startswith("transformers."):
            # Of its own classes generate makes some itself, and finds by their type that one of
            # them was given. They keep nothing from call to call, so they may be asked twice.
            criteria.append(one)
        criteria.append(NotingStops(one, stopped))
    strings, tokenizer = setting_of(model, options, "stop_strings"), options.get("tokenizer")
    if strings is not None and tokenizer is not None:
        from transformers import StopStringCriteria

        criteria.append(NotingStops(StopStringCriteria(tokenizer, strings), stopped))
    return ({**options, "stopping_criteria": criteria} if criteria else {**options}), stopped


def part_of_text(
    model: nn.Module,
    sequences: Tensor,
    start: int,
    options: Mapping[str, Any],
    stopped: Collection[tuple[int, ...]] = (),
) -> Tensor:
    """Mask `(N, G)` of generated tokens up to the end of their text, without padding.

    A text ends with an end-of-text token or where a stopping criterion said so. Otherwise all of
    it was written, whatever its last tokens are.
    """
    ends = set(special_ids(model, options, "eos_token_id"))
    lengths = [text_length(row, start, ends, stopped) for row in sequences.tolist()]
    places = torch.arange(sequences.shape[1] - start, device=sequences.device)
    return places < torch.tensor(lengths, device=sequences.device)[:, None]


def text_length(
    row: list[int], start: int, ends: Collection[int], stopped: Collection[tuple[int, ...]]
) -> int:
    """Tokens from a start to the end of a text."""
    for index in range(start, len(row)):
        if row[index] in ends or (stopped and tuple(row[: index + 1]) in stopped):
            return index + 1 - start
    return len(row) - start


def special_ids(model: nn.Module, options: Mapping[str, Any], name: str) -> list[int]:
    """Ids of a special token."""
    found = setting_of(model, options, name)
    return [] if found is None else torch.as_tensor(found).flatten().tolist()


def setting_of(model: nn.Module, options: Mapping[str, Any], name: str) -> Any:
    """A setting as `generate` takes it: from its options, else from the config."""
    found = options.get(name)
    for place in (options.get("generation_config"), getattr(model, "generation_config", None)):
        found = getattr(place, name, None) if found is None else found
    return found
