"""Tests of audits of regressions."""
