"""A posterior in words: for people at a terminal, and as a section of a model card."""

from __future__ import annotations

import re
from pathlib import Path

from posthoc_bhpeft.checkpoints import write_text
from posthoc_bhpeft.saving import SavedPosterior

CARD_FILE = "README.md"
CARD_START, CARD_END = "<!-- posthoc_bhpeft -->", "<!-- /posthoc_bhpeft -->"


def explain(saved: SavedPosterior) -> str:
    """A few lines on a fit: blocks by kind, curvature, prior, evidence."""
    posterior = saved.posterior
    sizes: dict[str, list[int]] = {}
    for block in posterior.blocks:
        sizes.setdefault(block.kind.value, []).append(block.size)
    parts = ", ".join(f"{kind} {len(s)} ({sum(s):,} weights)" for kind, s in sizes.items())
    n_weights = sum(block.size for block in posterior.blocks)
    unit = "nats a text" if saved.likelihood.positions else "nats"
    return (
        f"Laplace posterior over {n_weights:,} weights in {len(posterior.blocks)} blocks: "
        f"{parts}.\nCurvature: {saved.curvature} over {posterior.n_rows} rows, "
        f"mean training NLL {-posterior.log_likelihood / posterior.n_rows:.4f} {unit}.\n"
        f"{reason_of(saved)}\n"
        f"The data determine {determined(saved):.0f} effective parameters."
    )


def determined(saved: SavedPosterior) -> float:
    """How many effective parameters there are at the precision that was chosen."""
    posterior = saved.posterior
    return sum(posterior.evidence().effective_parameters(posterior.prior.precision).values())


def reason_of(saved: SavedPosterior) -> str:
    """Why the prior is what it is; with a label at every position, in which unit."""
    if saved.likelihood.positions and "(NLL " in saved.reason:
        return f"{saved.reason} Here NLL is in nats a word."
    return saved.reason


def model_card(saved: SavedPosterior, name: str) -> str:
    """Markdown: three lines to load it, and how it was made.

    Args:
        saved: The posterior and its settings.
        name: Of the folder or repository.

    Returns:
        The section, without markers.
    """
    posterior = saved.posterior
    kinds = ", ".join(dict.fromkeys(block.kind.value for block in posterior.blocks))
    rule = saved.review_rule
    review = "" if rule is None else f"- Review, by `predict(batch, review=True)`: {rule.promise}\n"
    return f"""## Calibrated uncertainty

This model comes with a Laplace posterior over its tuned weights ({kinds}). Load and predict:

```python
from posthoc_bhpeft import BayesianPeft
bayes = BayesianPeft.from_pretrained("{name}")
prediction = bayes.predict(batch)  # .probabilities, .total, .aleatoric, .epistemic (nats)
```

An adapter alone loads with `peft` as usual, after `import posthoc_bhpeft` if it is a hybrid one.

- Likelihood: `{saved.likelihood}`
- Curvature: `{saved.curvature}` over {posterior.n_rows} rows
- Predictive: `{saved.predictive}`
- {reason_of(saved)}
- Effective parameters: {determined(saved):.0f}
- Log marginal likelihood: {posterior.log_marginal_likelihood():.1f} nats
{review}"""


def write_card(folder: Path, section: str, existing: Path) -> None:
    """Write a card with the section: into the existing card, else into the one in `folder`.

    Args:
        folder: Gets the card; peft may have put one of its own there.
        section: Replaces the section that a card already has.
        existing: A folder whose card, if any, somebody may have written on.
    """
    cards = [place / CARD_FILE for place in (existing, folder)]
    text = next((card.read_text(encoding="utf-8") for card in cards if card.is_file()), "")
    write_text(folder / CARD_FILE, with_section(text, section))


def with_section(text: str, section: str) -> str:
    """A card with the section between its markers, or at its end."""
    marked = f"{CARD_START}\n{section.strip()}\n{CARD_END}"
    pattern = re.compile(re.escape(CARD_START) + ".*?" + re.escape(CARD_END), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: marked, text)
    return f"{text.rstrip()}\n\n{marked}\n".lstrip()
