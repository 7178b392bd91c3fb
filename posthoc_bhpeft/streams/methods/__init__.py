"""Methods of learning from a stream, one a file; each is a value with `start(learner)`."""

from posthoc_bhpeft.streams.methods.carried import CarriedPosterior, Parametrization
from posthoc_bhpeft.streams.methods.distance import L2Anchor
from posthoc_bhpeft.streams.methods.ewc import EWC
from posthoc_bhpeft.streams.methods.joint import Joint
from posthoc_bhpeft.streams.methods.lwf import LwF
from posthoc_bhpeft.streams.methods.method import StreamMethod, StreamRun
from posthoc_bhpeft.streams.methods.olora import OrthogonalLoRA, Overlap
from posthoc_bhpeft.streams.methods.progressive import Progressive
from posthoc_bhpeft.streams.methods.replay import Replay
from posthoc_bhpeft.streams.methods.warm_start import WarmStart

__all__ = [
    "EWC",
    "CarriedPosterior",
    "Joint",
    "L2Anchor",
    "LwF",
    "OrthogonalLoRA",
    "Overlap",
    "Parametrization",
    "Progressive",
    "Replay",
    "StreamMethod",
    "StreamRun",
    "WarmStart",
]
