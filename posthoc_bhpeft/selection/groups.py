"""Which blocks share a prior precision, and the noise that is learnt beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from posthoc_bhpeft.evidence import BlockSpectrum, LaplaceEvidence


class Grouping(str, Enum):
    """Which blocks share one prior precision."""

    MODEL = "model"
    KIND = "kind"
    BLOCK = "block"

    def groups(self, spectra: Mapping[str, BlockSpectrum]) -> dict[str, list[str]]:
        """Names of blocks by group."""
        found: dict[str, list[str]] = {}
        for name, spectrum in spectra.items():
            key = {"model": "all", "kind": spectrum.kind.value, "block": name}[self.value]
            found.setdefault(key, []).append(name)
        return found


def search_groups(
    evidence: LaplaceEvidence, per: Grouping, rule: Callable[[Sequence[BlockSpectrum]], float]
) -> tuple[dict[str, float], float | None, LaplaceEvidence]:
    """Precisions by a rule for each group, the learnt noise, and the evidence at that noise."""
    precision, noise = with_noise(evidence, lambda at_noise: by_group(at_noise, per, rule))
    return precision, noise, evidence if noise is None else evidence.at_noise(noise)


def by_group(
    evidence: LaplaceEvidence, per: Grouping, rule: Callable[[Sequence[BlockSpectrum]], float]
) -> dict[str, float]:
    """One precision a group, spread over its blocks."""
    precision = {}
    for names in per.groups(evidence.spectra).values():
        value = rule([evidence.spectra[name] for name in names])
        precision.update(dict.fromkeys(names, value))
    return precision


def with_noise(
    evidence: LaplaceEvidence, choose: Callable[[LaplaceEvidence], dict[str, float]]
) -> tuple[dict[str, float], float | None]:
    """Choose precisions, alternating with the noise variance where that is to be learnt.

    `s2 = |y - f|^2 / (N C - gamma)`, MacKay's fixed point.
    """
    if not evidence.learns_noise:
        return choose(evidence), None
    n = evidence.n_rows * evidence.n_outputs
    noise = max(evidence.squared_error / n, 1e-12)
    for _ in range(100):
        scaled = evidence.at_noise(noise)
        gamma = sum(scaled.effective_parameters(choose(scaled)).values())
        # With as many effective parameters as labels the fixed point runs away; half is the bound.
        updated = max(evidence.squared_error / max(n - gamma, 0.5 * n), 1e-12)
        converged = math.isclose(updated, noise, rel_tol=1e-9)
        noise = updated
        if converged:
            break
    return choose(evidence.at_noise(noise)), noise


def describe(precision: Mapping[str, float], evidence: LaplaceEvidence, per: Grouping) -> str:
    """The chosen precisions in a few words."""
    groups = per.groups(evidence.spectra)
    values = {group: precision[names[0]] for group, names in groups.items()}
    if per is Grouping.MODEL:
        return f"{values['all']:.3g}"
    if per is Grouping.KIND:
        return ", ".join(f"{group} {value:.3g}" for group, value in values.items())
    return f"{min(values.values()):.3g} to {max(values.values()):.3g}"
