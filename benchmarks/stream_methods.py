"""The methods side by side, and the one strength that each of them is tuned in.

Budget: each method with a strength gets the three values listed here, once, on the first rounds
of the streams and the seed of tuning (which is no seed of the results). `chosen` is the one with
the best mean of the average accuracies after the last of them, for every stream. Everything else
stays at the default of its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posthoc_bhpeft import DiagonalGGN
from posthoc_bhpeft.streams.methods import Joint, Replay, StreamMethod, WarmStart
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior
from posthoc_bhpeft.streams.methods.distance import L2Anchor
from posthoc_bhpeft.streams.methods.ewc import EWC
from posthoc_bhpeft.streams.methods.lwf import LwF
from posthoc_bhpeft.streams.methods.olora import OrthogonalLoRA
from posthoc_bhpeft.streams.methods.progressive import Progressive

if TYPE_CHECKING:
    from posthoc_bhpeft.training.settings import PeftKind

TUNING_STREAMS = ("tasks",)
TUNING_SEED = 100
TUNING_ROUNDS = 3
OURS = "ours (Kronecker)"


@dataclass(frozen=True)
class Contender:
    """A method, and the values its strength may take.

    Attributes:
        make: the method at a strength.
        grid: strengths tried by `--tune`; empty where there is nothing to tune.
        chosen: the best of them.
        peft: which parts are trained.
    """

    make: Callable[[float], StreamMethod]
    grid: tuple[float, ...] = ()
    chosen: float = 1.0
    peft: PeftKind = "hybrid"

    def __call__(self) -> StreamMethod:
        """The method at the strength chosen."""
        return self.make(self.chosen)


METHODS: dict[str, Contender] = {
    "warm start": Contender(lambda _: WarmStart()),
    "L2": Contender(L2Anchor, (1.0, 10.0, 100.0), 100.0),
    "EWC, empirical Fisher": Contender(EWC, (100.0, 1e3, 1e4), 1e4),
    "EWC, GGN": Contender(
        lambda weight: EWC(weight, curvature=DiagonalGGN()), (100.0, 1e3, 1e4), 1e4
    ),
    "EWC, online": Contender(lambda weight: EWC(weight, online=True), (100.0, 1e3, 1e4), 1e4),
    "LwF": Contender(LwF, (1.0, 3.0, 10.0), 3.0),
    "O-LoRA": Contender(OrthogonalLoRA, (0.5, 5.0, 50.0), 50.0, peft="lora"),
    # What O-LoRA starts from: the same parts, nothing that guards them.
    "warm start, LoRA alone": Contender(lambda _: WarmStart(), peft="lora"),
    "progressive": Contender(lambda _: Progressive()),
    OURS: Contender(CarriedPosterior, (30.0, 100.0, 300.0), 30.0),
    "replay, 2 %": Contender(lambda _: Replay(0.02)),
    "replay, 20 %": Contender(lambda _: Replay(0.2)),
    "joint": Contender(lambda _: Joint()),
}
