"""Methods of learning from a stream, one a file; each is a value with `start(learner)`."""

from posthoc_bhpeft.streams.methods.joint import Joint
from posthoc_bhpeft.streams.methods.method import StreamMethod, StreamRun
from posthoc_bhpeft.streams.methods.replay import Replay
from posthoc_bhpeft.streams.methods.warm_start import WarmStart

__all__ = ["Joint", "Replay", "StreamMethod", "StreamRun", "WarmStart"]
