"""The tuner: puts a hybrid into a model in peft's way."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from posthoc_bhpeft.errors import NotMergeableError
from posthoc_bhpeft.hybrid.attach import attach, detach, listen, remove_hooks
from posthoc_bhpeft.hybrid.attention import CHILD, key_value_shape
from posthoc_bhpeft.hybrid.config import HybridConfig
from posthoc_bhpeft.hybrid.gates import TokenMask
from posthoc_bhpeft.hybrid.layer import HybridLayer
from posthoc_bhpeft.hybrid.layernorm import HybridLayerNorm
from posthoc_bhpeft.hybrid.linear import HybridLinear
from posthoc_bhpeft.hybrid.plan import Role, fill_in_defaults, plan_for
from posthoc_bhpeft.hybrid.positions import HybridPositions
from posthoc_bhpeft.hybrid.prefix import HybridPrefix


class HybridModel(BaseTuner):
    """LoRA, bottleneck adapters and prefix in one model; made by `peft.get_peft_model`.

    Args:
        model: The model to adapt.
        peft_config: A `HybridConfig`, or adapter names with theirs.
        adapter_name: The first adapter.
    """

    prefix = "bhpeft_"
    tuner_layer_cls = HybridLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (as in peft)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; a call, not `.forward`, so that the model's hooks run.

        Older versions of peft pass the hooks by, and gates find their mask with one.
        """
        return self.model(*args, **kwargs)

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        assert isinstance(peft_config, HybridConfig)
        fill_in_defaults(self.model, peft_config)
        self._plan = plan_for(self.model, peft_config, self._tokens(peft_config))
        return peft_config

    def _tokens(self, config: HybridConfig) -> TokenMask:
        """The model's mask recorder; put there with the first adapter that has gates."""
        for hook in self.model._forward_pre_hooks.values():
            if isinstance(hook, TokenMask):
                return hook
        tokens = TokenMask()
        if config.gates:
            self.model.register_forward_pre_hook(tokens, with_kwargs=True)
        return tokens

    def _check_target_module_exists(  # type: ignore[override]
        self, peft_config: PeftConfig, key: str
    ) -> Any:
        # peft's own answer tells an excluded module from one that nobody asked for.
        return key in self._plan or check_target_module_exists(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, HybridConfig)
        role = self._plan[current_key]
        layer = self._update(peft_config, adapter_name, target, role)
        if layer is None:
            layer = self._create(peft_config, adapter_name, target, role)
            if isinstance(layer, HybridPrefix):
                attach(target, layer)
            else:
                self._replace_module(parent, target_name, layer, target)
        if isinstance(layer, HybridPrefix) and peft_config.gates:
            listen(target, layer)
        if adapter_name not in self.active_adapters:
            # A further adapter starts inactive, so it must not be trained yet.
            layer.set_requires_grad(adapter_name, requires_grad=False)

    def _update(
        self, config: HybridConfig, adapter_name: str, target: nn.Module, role: Role
    ) -> HybridLayer | None:
        """Add one more adapter to a layer that is there already."""
        if role.prefix and hasattr(target, CHILD):
            prefix: HybridPrefix = getattr(target, CHILD)
            # A weight of the attention: once all adapters were deleted, the prefix has none left.
            prefix.update_layer(adapter_name, config, role, next(target.parameters()))
            return prefix
        if isinstance(target, (HybridLinear, HybridLayerNorm)):
            target.update_layer(adapter_name, config, role)
        elif isinstance(target, HybridPositions):
            target.update_layer(adapter_name, config)
        else:
            return None
        return target

    def _create(
        self, config: HybridConfig, adapter_name: str, target: nn.Module, role: Role
    ) -> HybridLayer:
        if role.prefix:
            like = next(target.parameters())
            return HybridPrefix(adapter_name, config, role, key_value_shape(target), like)
        if role.positions:
            return HybridPositions(target, adapter_name, config)
        if isinstance(target, nn.LayerNorm):
            return HybridLayerNorm(target, adapter_name, config, role)
        return HybridLinear(target, adapter_name, config, role)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        if isinstance(new_module, HybridLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            # What comes back has its weights. peft would give it those of `child`, and the wrapper
            # of a head of several layers, as that of rotary angles, has none to give.
            setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]
        for name, module in self.model.named_modules():
            if isinstance(module, HybridLayer) and not getattr(module, "mergeable", False):
                raise NotMergeableError(
                    f"{name!r} carries an adapter, a prefix or a gate: these add computation, so "
                    "no base weight can hold them (only a hybrid of LoRA alone merges). Keep the "
                    "model as it is and save it with save_pretrained, or take the hybrid off with "
                    "unload()."
                )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        model: Any = super()._unload_and_optionally_merge(
            merge, progressbar, safe_merge, adapter_names
        )
        for module in model.modules():
            if hasattr(module, CHILD):
                detach(module)
        remove_hooks(model, lambda hook: isinstance(hook, TokenMask))
        return model
