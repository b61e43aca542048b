"""The hooks of a module, when another takes its place."""

import weakref
from typing import Any

__all__ = ["hand_over_hooks"]

#: where nn.Module keeps hooks, and how each of them is called
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hand_over_hooks(old: Any, new: Any) -> None:
    """From now on the hooks of `old` are also those of `new`, which keeps its own.

    Both hold the same dictionaries, so that a handle which somebody has kept removes
    its hook from both.
    """
    for name in _HOOKS:
        hooks = getattr(old, name)
        hooks.update(getattr(new, name))
        setattr(new, name, hooks)
    if old._is_full_backward_hook is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    for hook in new._load_state_dict_pre_hooks.values():
        if hook.with_module:  # it calls its function with the module it remembers
            hook.module = weakref.ref(new)
    if hasattr(old, "_hf_hook"):  # accelerate's stands in front of the forward
        from accelerate.hooks import (  # type: ignore[import-untyped]
            add_hook_to_module,
        )

        add_hook_to_module(new, old._hf_hook)
