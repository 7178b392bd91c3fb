"""`Work`: what an estimate is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from posthoc_bhpeft.blocks import Block, Product
from posthoc_bhpeft.curvature import Curvature
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.size.batch import BatchBytes
from posthoc_bhpeft.size.passes import Data


@dataclass(frozen=True)
class Work:
    """What is to be done, as far as bytes and passes depend on it.

    Attributes:
        blocks: Of the model.
        products: LoRA layers whose `B A` is kept too.
        curvature: The estimator.
        likelihood: Of the labels.
        prior: A rule, or a prior.
        predictive: How predictions are made.
        data: How much there is.
        batch: What a batch needs; `None` where that was not measured.
        device: Of the model.
        model_bytes: Of its weights.
        item: Bytes of a number of its gradients.
    """

    blocks: tuple[Block, ...] = field(repr=False)
    products: tuple[Product, ...] = field(repr=False)
    curvature: Curvature
    likelihood: Likelihood
    prior: Any
    predictive: Any
    data: Data
    batch: BatchBytes | None
    device: torch.device
    model_bytes: int
    item: int
