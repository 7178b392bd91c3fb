"""Smooth calibration error: bins replaced by a kernel that chooses its own width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Array, Floats
from posthoc_bhpeft.audit.metrics.calibration import directional
from posthoc_bhpeft.audit.metrics.rows import Positions, Resampled, Rows, group_sums

# Cells of [0, 1] that gaps are put into; what a cell hides is below 1 / 2048 = 0.0005.
CELLS = 2048

# Each step halves what is not known of the bandwidth: 2^-12 is half a cell.
STEPS = 12


def smooth_calibration_error(probabilities: Array, labels: Array) -> float:
    """The calibration error of the top confidence, smoothed, without bins.

    ``smECE_s = integral_0^1 |1/N sum_i K_s(t, q_i) (q_i - right_i)| dt`` for confidence ``q`` and a
    Gaussian kernel ``K_s`` of width ``s`` that is reflected at 0 and 1. It falls as ``s`` grows;
    the figure is the one ``s`` with ``smECE_s = s`` (Blasiok and Nakkiran, 2023,
    https://arxiv.org/abs/2309.12236). It moves little when the probabilities do, which a binned
    error does not promise. Computed on 2048 cells by cosine transform: off by less than 0.0005.
    """
    return float(smooth_of(Rows.checked(probabilities, labels).whole)[0])


def smooth_of(drawn: Resampled) -> Floats:
    """`smooth_calibration_error` of each resample, ``(R,)``."""
    return _bandwidth(_cosines(_in_cells(drawn)))


def smooth_excess(drawn: Resampled) -> Floats:
    """How much of `smooth_of` may be noise, ``(R,)``.

    At the sample's own bandwidth ``s`` the error of the sample is at most that of the population
    plus ``integral |K_s (sample - population)|``, since ``smECE_s`` falls in ``s``.
    """
    gaps = _in_cells(drawn.rows.whole)
    width = _bandwidth(_cosines(gaps))
    moved = _smoothed(_cosines(_in_cells(drawn) - gaps), width)
    at = _smoothed(_cosines(gaps), width)[0]
    error = np.sqrt((moved**2).mean(axis=0))
    # A standard error from a few resamples is no guide, so no gap counts as clear then.
    clear = directional(moved, at, error) if len(moved) >= 30 else np.abs(moved)
    found: Floats = clear.sum(axis=1)
    return found


def _in_cells(drawn: Resampled) -> Floats:
    """Gaps over ``N``, each shared by the two cells around its confidence, ``(R, CELLS)``."""
    rows = drawn.rows
    lower, upper, part = _cells(rows.confidence)
    gaps = drawn.weights * (rows.gap / len(rows))
    return group_sums(gaps * (1.0 - part), lower, CELLS) + group_sums(gaps * part, upper, CELLS)


def _cells(confidence: Floats) -> tuple[Positions, Positions, Floats]:
    """The cells whose centres are below and above, and how far towards the upper one."""
    place = confidence * CELLS - 0.5
    floor = np.floor(place)
    lower = np.clip(floor, 0, CELLS - 1).astype(np.int64)
    upper = np.clip(floor + 1, 0, CELLS - 1).astype(np.int64)
    return lower, upper, place - floor


def _cosines(values: Floats) -> Floats:
    """Spectrum of values and their mirror image, real but for a known phase, ``(R, CELLS + 1)``."""
    mirrored = np.concatenate([values, values[:, ::-1]], axis=1)
    spectrum = np.fft.rfft(mirrored, axis=1) * _phase()
    return spectrum.real


def _smoothed(cosines: Floats, width: Floats) -> Floats:
    """Values smoothed by the reflected Gaussian of each width ``(R,)``, ``(R, CELLS)``."""
    k = np.arange(CELLS + 1)
    damped = cosines * np.exp(-0.5 * (np.pi * width[:, None] * k) ** 2)
    found: Floats = np.fft.irfft(damped * np.conj(_phase()), n=2 * CELLS, axis=1)[:, :CELLS]
    return found


def _phase() -> NDArray[np.complex128]:
    """Half a cell: centres are mirrored at the edge of the first cell, not at its centre."""
    found: NDArray[np.complex128] = np.exp(-0.5j * np.pi * np.arange(CELLS + 1) / CELLS)
    return found


def _bandwidth(cosines: Floats) -> Floats:
    """The width at which the error equals it, by halving, ``(R,)``."""
    low, high = np.zeros(len(cosines)), np.ones(len(cosines))
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        above = np.abs(_smoothed(cosines, middle)).sum(axis=1) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    found: Floats = (low + high) / 2.0
    return found
