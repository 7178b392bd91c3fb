"""The section of a model card that says what a posterior is and how to load it."""

from __future__ import annotations

from posthoc_bhpeft.saving import SavedPosterior


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
    return f"""## Calibrated uncertainty

This adapter comes with a Laplace posterior over its weights ({kinds}). Load and predict:

```python
from posthoc_bhpeft import BayesianPeft
bayes = BayesianPeft.from_pretrained("{name}")
prediction = bayes.predict(batch)  # .probabilities, .total, .aleatoric, .epistemic (nats)
```

The adapter alone loads with `peft` as usual, after `import posthoc_bhpeft` if it is a hybrid one.

- Likelihood: `{saved.likelihood}`
- Curvature: `{saved.curvature}` over {posterior.n_rows} rows
- Predictive: `{saved.predictive}`
- {saved.reason}
- Log marginal likelihood: {posterior.log_marginal_likelihood():.1f} nats
"""
