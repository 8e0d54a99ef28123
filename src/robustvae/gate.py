"""The one gate through which a layer comes before anything is proved of it.

A bound is computed from a layer's weights and options; what runs is its `forward`, with whatever
was hooked to it. Where the two may differ, a proof of the one says nothing about the other. Norms,
Lipschitz constants, linear bounds, the tangent envelope and traces all ask here, and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from robustvae.errors import UnsupportedError

M = TypeVar("M", bound=type[nn.Module])

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_OWN_HOOKS = tuple(name.removeprefix("_global") for name in _GLOBAL_HOOKS)

# As they are when the library is imported: a class whose forward is replaced later is seen by this.
_CALL = (nn.Module.__call__, nn.Module._call_impl)
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {}
_MODELS: dict[type[nn.Module], dict[str, Any]] = {}

# Whether these are in training mode decides what they compute.
_MODED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.modules.batchnorm._BatchNorm)


def know(*kinds: type[nn.Module]) -> None:
    """Remember what layers of these classes compute, so that `admit` sees it replaced.

    Args:
        kinds: Classes that bounds are known for.
    """
    for kind in kinds:
        _FORWARDS.setdefault(kind, kind.forward)


def admit_process() -> None:
    """Raise on a process in which layers compute something else than their classes say.

    Raises:
        UnsupportedError: A global hook, autocast, or a mode that catches torch's functions.

    Examples:
        >>> from robustvae.gate import admit_process
        >>> admit_process()
    """
    for name in _GLOBAL_HOOKS:
        if getattr(_modules, name, None):
            raise UnsupportedError(
                "bounds want layers that nothing is hooked to, got a global module hook; "
                "remove it before certifying"
            )
    if (nn.Module.__call__, nn.Module._call_impl) != _CALL:
        raise UnsupportedError(
            "bounds want torch's own Module.__call__, got a replaced one; restore it"
        )
    if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
        raise UnsupportedError(
            "bounds want the model's own floating type, got autocast; leave the autocast context"
        )
    # the mode that only places new tensors leaves the functions' values as they are
    others = [
        mode
        for mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
        if type(mode).__name__ != "DeviceContext"
    ]
    if others:
        raise UnsupportedError(
            "bounds want torch's own functions, got the mode "
            f"{type(others[0]).__name__}; leave its context"
        )


def admit_call(module: nn.Module) -> None:
    """Raise on a module on which something is hooked, or a method is replaced; of any class.

    Args:
        module: Alone, without its submodules.

    Raises:
        UnsupportedError: A hook of any kind, a forward or other method of its own, parametrized
            weights, a compiled call.
    """
    name = type(module).__name__
    for hooks in _OWN_HOOKS:
        if getattr(module, hooks, None):
            raise UnsupportedError(f"bounds want layers without a hook, got a {name} with a hook")
    if vars(module).get("_compiled_call_impl") is not None:
        raise UnsupportedError(f"bounds want layers as they are, got a compiled {name}")
    if "parametrizations" in module._modules:
        raise UnsupportedError(
            f"bounds want stored weights, got a {name} with parametrized ones; call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    for attribute in vars(module):
        # an attribute that hides a method of the class: forward, _conv_forward, ...
        if callable(getattr(type(module), attribute, None)):
            raise UnsupportedError(
                f"bounds want layers that compute what their class does, got a {name} with a "
                f"{attribute} of its own"
            )


def know_model(kind: M) -> M:
    """Remember a class of models whose statement of its networks is believed; a decorator.

    Args:
        kind: The class, with all methods that it will have.
    """
    _MODELS[kind] = _functions(kind)
    return kind


def is_known_model(model: nn.Module) -> bool:
    """Whether a model is of a class that `know_model` was told of, exactly and as it was then.

    A subclass may encode as it likes, and so may a class with a method replaced. Its layers are
    asked for one by one when they are bounded.

    Args:
        model: The whole model.

    Raises:
        UnsupportedError: Anything that `admit_call` or `admit_process` refuses.
    """
    admit_process()
    admit_call(model)
    kind = type(model)
    return kind in _MODELS and _MODELS[kind] == _functions(kind)


def _functions(kind: type[nn.Module]) -> dict[str, Any]:
    """A class's functions and properties but for those that every module has, by name."""
    plain = set(dir(nn.Module))
    members = {name: inspect.getattr_static(kind, name) for name in dir(kind) if name not in plain}
    return {
        name: member
        for name, member in members.items()
        if callable(member) or isinstance(member, property | staticmethod | classmethod)
    }


def admit(layer: nn.Module) -> None:
    """Raise on a layer unless it computes what its class computes, from the tensors that it stores.

    Args:
        layer: A layer of a class that `know` was told of, exactly: a subclass may do anything.

    Raises:
        UnsupportedError: Another class, or anything that `admit_call` and `admit_process` refuse;
            dropout or batch norm in training mode; weights of a tensor subclass.

    Examples:
        >>> from torch import nn
        >>> from robustvae.gate import admit, know
        >>> know(nn.Linear)
        >>> admit(nn.Linear(2, 3))
    """
    admit_process()
    admit_call(layer)
    kind = type(layer)
    if kind not in _FORWARDS:
        raise UnsupportedError(
            f"no bounds are known for {kind.__name__}; use a layer of a known class, or a method "
            "that reads no weights"
        )
    if kind.forward is not _FORWARDS[kind]:
        raise UnsupportedError(f"the forward of the class {kind.__name__} was replaced; restore it")
    if layer.training and isinstance(layer, _MODED):
        raise UnsupportedError(f"bounds want evaluation mode, got a {kind.__name__} in training")
    admit_tensors(layer)
    for attribute, value in vars(layer).items():
        if isinstance(value, Tensor):
            raise UnsupportedError(
                f"bounds want weights that are parameters or buffers, got a {kind.__name__} whose "
                f"{attribute} is a tensor beside them; register it"
            )


def admit_tensors(module: nn.Module) -> None:
    """Raise on a module whose tensors may compute something else than plain ones do.

    Args:
        module: Alone, without its submodules.

    Raises:
        UnsupportedError: A parameter, buffer or attribute of a tensor subclass.
    """
    attributes = [value for value in vars(module).values() if isinstance(value, Tensor)]
    for tensor in (*module._parameters.values(), *module._buffers.values(), *attributes):
        if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
            raise UnsupportedError(
                f"bounds want plain tensors, got a {type(module).__name__} with weights of type "
                f"{type(tensor).__name__}; store them as torch.nn.Parameter"
            )
