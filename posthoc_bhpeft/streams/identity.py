"""What a stream is, written once and kept: stream.json in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from posthoc_bhpeft.checkpoints import read_json, write_json
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.selection import FixedPrecision, MatchedPrecision
from posthoc_bhpeft.settings import decode, encode
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior
from posthoc_bhpeft.streams.rounds import Heads
from posthoc_bhpeft.training import TrainingSettings

STREAM_FILE = "stream.json"
SCRATCH = f".{STREAM_FILE}.*"
"""Names under which it is written before it is whole."""
_FORMAT = 1
_FIELDS = ("base", "heads", "settings", "method")
_READABLE = (CarriedPosterior, FixedPrecision, MatchedPrecision)


@dataclass(frozen=True)
class StreamIdentity:
    """Everything that decides the numbers of a stream, apart from its rounds.

    Attributes:
        base: "minilm", the folder of a base model, or a hub name.
        heads: which outputs a row chooses among.
        settings: how to train.
        method: what is carried from round to round.
    """

    base: str = "minilm"
    heads: Heads = Heads.SHARED
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    method: CarriedPosterior = field(default_factory=CarriedPosterior)

    def __post_init__(self) -> None:
        if not isinstance(self.method, CarriedPosterior):
            raise ConfigError(
                f"method is {self.method!r}, and a stream on disk is made of posteriors. "
                "Supported: CarriedPosterior(...). Other methods work in memory: "
                "run = method.start(Learner.start(...)), then run.learn(round, index)."
            )

    @property
    def content(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "base": self.base,
            "heads": self.heads.value,
            "settings": encode(self.settings),
            "method": encode(self.method),
        }

    def write(self, folder: Path) -> None:
        """Write stream.json."""
        write_json(folder / STREAM_FILE, {"format": _FORMAT, **self.content})


def continued(folder: Path, given: Mapping[str, Any]) -> StreamIdentity:
    """The identity of the stream in a folder, or a new one where there is none.

    Args:
        folder: of the stream.
        given: fields of `StreamIdentity`; None stands for what the stream has, or the default.

    Raises:
        ConfigError: the stream there has other settings, or the folder holds something else.
        CheckpointError: its stream.json cannot be read.
    """
    if isinstance(base := given.get("base"), str) and Path(base).expanduser().is_dir():
        given = {**given, "base": str(Path(base).expanduser().resolve())}
    chosen = {name: value for name, value in given.items() if value is not None}
    if not (folder / STREAM_FILE).is_file():
        _check_free(folder)
        return StreamIdentity(**chosen)
    recorded = _read(folder)
    known = {name: recorded[name] for name in _FIELDS if name not in chosen}
    found = StreamIdentity(**_decoded(folder, known), **chosen)
    now = found.content
    if changes := list(_changes(recorded, {name: now[name] for name in chosen})):
        raise ConfigError(
            f"The stream in {str(folder)!r} was started with other settings: {'; '.join(changes)}. "
            "Continue it with those (in Python also by leaving them out), or choose another folder "
            "for a new stream."
        )
    return found


def _check_free(folder: Path) -> None:
    """Raise where a stream would mix with the files of others."""
    if folder.is_file():
        raise ConfigError(f"{str(folder)!r} is a file; give a folder for the stream.")
    # A process killed while it wrote the file has learnt nothing, so it left no stream.
    scratch = set(folder.glob(SCRATCH))
    if folder.is_dir() and any(path not in scratch for path in folder.iterdir()):
        raise ConfigError(
            f"The folder {str(folder)!r} is not empty and holds no stream ({STREAM_FILE} is "
            "missing). Give the folder of a stream to continue it, or a new one."
        )


def _read(folder: Path) -> dict[str, Any]:
    content = read_json(folder / STREAM_FILE)
    if content.get("format") != _FORMAT or any(name not in content for name in _FIELDS):
        raise CheckpointError(
            f"{str(folder / STREAM_FILE)!r} does not describe a stream in the format that this "
            f"version reads ({_FORMAT}). Upgrade posthoc-bhpeft, or copy the file again."
        )
    return content


def _decoded(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Values from JSON; a part of the user's own cannot be made again from its name."""
    found = dict(known)
    try:
        if "heads" in known:
            found["heads"] = Heads(known["heads"])
        if "settings" in known:
            found["settings"] = decode(known["settings"], more=(TrainingSettings,))
        if "method" in known:
            found["method"] = decode(known["method"], more=_READABLE)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(
            f"{str(folder / STREAM_FILE)!r} names something that cannot be made again: {error} "
            "Pass what the stream was started with: Stream(folder, method=..., settings=...)."
        ) from error
    return found


def _changes(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two settings as JSON data, as `name: then, now`."""
    if isinstance(then, dict) and isinstance(now, dict) and then.get("type") == now.get("type"):
        for key in now:
            yield from _changes(then.get(key), now[key], f"{name}.{key}" if name else key)
    elif then != now:
        yield f"{name} was {_named(then)}, and is now {_named(now)}"


def _named(value: Any) -> str:
    value = value.value if isinstance(value, Enum) else value
    return str(value["type"]) if isinstance(value, dict) and "type" in value else repr(value)
