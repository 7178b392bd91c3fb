"""Merging posteriors that were fitted apart, on data that never meet."""

from posthoc_bhpeft.merging.combine import common_prior, merge

__all__ = ["common_prior", "merge"]
