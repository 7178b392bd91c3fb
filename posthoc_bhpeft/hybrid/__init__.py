"""Hybrid PEFT: LoRA, bottleneck adapters and prefix keys and values in one peft config.

Importing this package registers the tuner with peft and its attention function with transformers;
a saved hybrid can only be loaded after it.
"""

from __future__ import annotations

from posthoc_bhpeft.hybrid import attention, registration
from posthoc_bhpeft.hybrid.config import AdapterPlacement, HybridConfig
from posthoc_bhpeft.hybrid.model import HybridModel
from posthoc_bhpeft.hybrid.prefix import PrefixKV

__all__ = ["AdapterPlacement", "HybridConfig", "HybridModel", "PrefixKV"]

attention.register()
registration.register(HybridConfig, HybridModel)
