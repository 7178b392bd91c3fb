"""Every error the package raises on purpose; each says what, got, supported and the next step.

BhpeftError
├── ModelError                    the model cannot be bayesianized as it is
│   ├── NothingTrainableError     no tensor requires a gradient
│   ├── UnclaimedParameterError   a trainable tensor is in no block
│   ├── HiddenAdapterError        an adapter is there but frozen, merged or not active
│   ├── DeadBlockError            a block took no part in the forward pass
│   └── NonFiniteError            NaN or infinity in weights, logits or curvature
├── DataError                     the loader, a batch or the labels are wrong
├── ConfigError                   a setting is out of range or contradicts another
├── ConvergenceError              a linear system was not solved to its tolerance
├── MemoryLimitError              a fit or a batch does not fit into memory
├── CheckpointError               a saved posterior cannot be read or does not fit the model
├── ProcessError                  another process of the same fit failed
└── HybridError                   a hybrid of LoRA, adapter and prefix cannot do what was asked
    ├── TargetError               a target matches no module, or one of the wrong kind
    │   └── PrefixUnsupportedError  the model's attention takes no prefix
    └── NotMergeableError         a part cannot be merged into the base weights
"""

from __future__ import annotations


class BhpeftError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""


class ModelError(BhpeftError):
    """The model cannot be bayesianized as it is."""


class NothingTrainableError(ModelError):
    """No tensor of the model requires a gradient."""


class UnclaimedParameterError(ModelError):
    """A trainable tensor is in no block."""


class HiddenAdapterError(ModelError):
    """An adapter is there but frozen, merged or not active."""


class DeadBlockError(ModelError):
    """A block took no part in the forward pass, so it has no gradient."""


class NonFiniteError(ModelError):
    """NaN or infinity in weights, logits or curvature."""


class DataError(BhpeftError):
    """The loader, a batch or the labels are wrong."""


class ConfigError(BhpeftError, ValueError):
    """A setting is out of range or contradicts another."""


class ConvergenceError(BhpeftError):
    """A linear system was not solved to its tolerance."""


class MemoryLimitError(BhpeftError):
    """A fit or a batch does not fit into memory."""


class CheckpointError(BhpeftError):
    """A saved posterior cannot be read or does not fit the model."""


class ProcessError(BhpeftError):
    """Another process of the same fit failed."""


class HybridError(BhpeftError):
    """A hybrid of LoRA, adapter and prefix cannot do what was asked."""


class TargetError(HybridError, ValueError):
    """A target of a hybrid matches no module, or one of the wrong kind."""


class PrefixUnsupportedError(TargetError):
    """The model's attention takes no prefix."""


class NotMergeableError(HybridError):
    """A part of a hybrid cannot be merged into the base weights."""
