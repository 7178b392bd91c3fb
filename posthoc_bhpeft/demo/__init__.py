"""The demonstration: customer messages, real weights, MAP against Bayes."""

from posthoc_bhpeft.demo.run import run_demo, satisfaction

__all__ = ["run_demo", "satisfaction"]
