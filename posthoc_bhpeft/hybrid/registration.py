"""Making the tuner known to peft: the only work done at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

#: What adapter_config.json says under "peft_type".
NAME = "BHPEFT"


def peft_type() -> PeftType:
    """Our member of peft's enum, added on the first call.

    peft offers `register_peft_method` for methods of others, but takes the name from a closed enum.
    """
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_ = NAME
        member._value_ = NAME
        member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
        type.__setattr__(PeftType, NAME, member)
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
    return PeftType[NAME]


def register(config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register the tuner with peft; a second call replaces the first."""
    kind = peft_type()
    if kind in PEFT_TYPE_TO_TUNER_MAPPING:
        PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config
        PEFT_TYPE_TO_TUNER_MAPPING[kind] = tuner
        return
    register_peft_method(name=NAME.lower(), config_cls=config, model_cls=tuner)
