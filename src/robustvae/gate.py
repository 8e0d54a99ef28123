"""The one gate through which a layer comes before anything is proved of it.

A bound is computed from a layer's weights and options; what runs is its `forward`, with whatever
was hooked to it. Where the two may differ, a proof of the one says nothing about the other. Norms,
Lipschitz constants, linear bounds, the tangent envelope and traces all ask here, and nowhere else.
"""

from __future__ import annotations

import copyreg
import inspect
import os
import types
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as _modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from robustvae.errors import UnsupportedError, check_type

M = TypeVar("M", bound=type[nn.Module])
D = TypeVar("D", bound=type)

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_OWN_HOOKS = tuple(name.removeprefix("_global") for name in _GLOBAL_HOOKS)

_TORCH, _OURS = (os.path.dirname(os.path.abspath(path)) for path in (torch.__file__, __file__))
_REPLACED = object()  # stands for what was not torch's own when it was to be remembered


def _is_from(function: Any, folder: str) -> bool:
    """Whether a function was written in a file of that folder."""
    code = getattr(function, "__code__", None)
    return code is not None and os.path.abspath(code.co_filename).startswith(folder + os.sep)


def _is_torchs(name: str, member: Any) -> bool:
    """Whether a function, class or property that torch has under a name is torch's own."""
    if isinstance(member, property):
        parts = (member.fget, member.fset, member.fdel)
        return all(_is_torchs(part.__name__, part) for part in parts if part is not None)
    member = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    home = getattr(member, "__module__", None)
    if hasattr(member, "__code__"):
        return _is_from(member, _TORCH) and str(home).partition(".")[0] == "torch"
    if isinstance(member, types.BuiltinFunctionType | types.MethodDescriptorType):
        is_home = home is None or home.partition(".")[0] == "torch"
        return is_home and member.__name__.strip("_") == name.strip("_")
    return isinstance(member, type) and member.__module__.partition(".")[0] == "torch"


def _own(name: str, member: Any) -> Any:
    """What is to be remembered of torch: the member, or what nothing equals if it was replaced."""
    return member if _is_torchs(name, member) else _REPLACED


# As they are when the library is imported: what is replaced later is seen by this.
_CALL = {
    name: _own(name, vars(nn.Module)[name]) for name in ("__call__", "_call_impl", "__getattr__")
}
_KINDS: dict[type[nn.Module], tuple[tuple[type, dict[str, Any]], ...]] = {}
_FUNCTIONS: dict[tuple[Any, str], Any] = {}
_MODELS: dict[type[nn.Module], dict[str, Any]] = {}
_DRAWS: dict[type, dict[str, Any]] = {}

# What copies and converts a module; the copy is what bounds are computed of.
_COPYING = (
    "__deepcopy__",
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getattribute__",
    "_apply",
)

# Whether these are in training mode decides what they compute.
_MODED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.modules.batchnorm._BatchNorm)


def know(*kinds: type[nn.Module]) -> None:
    """Remember what layers of these classes compute, so that `admit` sees any of it replaced.

    That is the methods of a class and of its bases, and torch's functions that these name. What
    is torch's must come from torch's own files: one that was replaced before is seen as well.

    Args:
        kinds: Classes that bounds are known for.
    """
    for kind in kinds:
        if kind in _KINDS:
            continue
        bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
        _KINDS[kind] = tuple((base, _remembered(base)) for base in bases)
        for _, members in _KINDS[kind]:
            for member in members.values():
                _know_functions(member)


def _own_functions(base: type) -> dict[str, Any]:
    """A class's own methods and properties."""
    return {name: member for name, member in vars(base).items() if _runs(member)}


def _remembered(base: type) -> dict[str, Any]:
    """A class's own methods and properties, of torch's classes as torch wrote them."""
    members = _own_functions(base)
    if base.__module__.partition(".")[0] != "torch":
        return members
    return {name: _own(name, member) for name, member in members.items()}


def _runs(member: Any) -> bool:
    return callable(member) or isinstance(member, property | staticmethod | classmethod)


def _know_functions(function: Any) -> None:
    """Remember torch's functions that a function names, and those that these name in turn."""
    for name in getattr(getattr(function, "__code__", None), "co_names", ()):
        if name.startswith("__"):
            continue
        for owner in (functional, torch, Tensor):
            # a copy of the class's own, so that one which is put in front of it is seen; of a
            # module what it has, since torch loads its compiler for a name such as _dynamo
            is_class = isinstance(owner, type)
            callee = getattr(owner, name, None) if is_class else vars(owner).get(name)
            if callable(callee) and (owner, name) not in _FUNCTIONS:
                _FUNCTIONS[owner, name] = _own(name, callee)
                if owner is functional:
                    _know_functions(callee)


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
    for name, member in _CALL.items():
        if vars(nn.Module).get(name) is not member:
            raise UnsupportedError(
                f"bounds want torch's own Module.{name}, got a replaced one; restore it"
            )
    for (owner, name), function in _FUNCTIONS.items():
        if getattr(owner, name, None) != function:
            raise UnsupportedError(
                f"bounds want torch's own {owner.__name__}.{name}, got a replaced one; restore it, "
                "before the first bound of a process is asked for"
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
    check_type(module, "module", nn.Module)
    name = type(module).__name__
    for kept in ("_modules", "_parameters", "_buffers", *_OWN_HOOKS):
        # torch's own containers: another may hold more when it is read again
        if isinstance(getattr(module, kept, None), dict) and type(getattr(module, kept)) not in (
            dict,
            OrderedDict,
        ):
            raise UnsupportedError(
                f"bounds want torch's own containers, got a {name} whose {kept} is a "
                f"{type(getattr(module, kept)).__name__}; use a dict"
            )
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


def know_draws(kind: D) -> D:
    """Remember how a distribution of the library draws, so that it is seen replaced; a decorator.

    Args:
        kind: The class, with all methods that it will have.
    """
    _DRAWS[kind] = _own_functions(kind)
    return kind


def admit_draws(distribution: object) -> None:
    """Raise on a distribution that draws otherwise than its class does.

    Args:
        distribution: What an encoder returned, of the library or of `torch.distributions`.

    Raises:
        UnsupportedError: A method of its own, or one that was replaced in torch's class.
    """
    kind = type(distribution)
    for name in getattr(distribution, "__dict__", {}):
        if callable(inspect.getattr_static(kind, name, None)):
            raise UnsupportedError(
                f"bounds want a posterior that draws as its class does, got a {kind.__name__} with "
                f"a {name} of its own; return it as it was made"
            )
    for base in kind.__mro__[:-1] if kind not in _DRAWS else ():
        for name, member in _own_functions(base).items():
            if name in ("sample", "rsample", "mean", "stddev") and not _is_torchs(name, member):
                raise UnsupportedError(
                    f"bounds want torch's own {base.__name__}.{name}, got a replaced one; restore "
                    "it"
                )


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
    for known, members in _DRAWS.items():
        for name, member in members.items():
            if vars(known).get(name) is not member:
                raise UnsupportedError(
                    f"bounds want the library's own {known.__name__}.{name}, got a replaced one; "
                    "restore it"
                )
    kind = type(model)
    return kind in _MODELS and _MODELS[kind] == _functions(kind)


def _functions(kind: type[nn.Module]) -> dict[str, Any]:
    """A class's functions and properties but for those that it has of `nn.Module`, by name."""
    plain = {name: inspect.getattr_static(nn.Module, name) for name in dir(nn.Module)}
    members = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    return {
        name: member
        for name, member in members.items()
        if _runs(member) and member is not plain.get(name)
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
    if kind not in _KINDS:
        raise UnsupportedError(
            f"no bounds are known for {kind.__name__}; use a layer of a known class, or a method "
            "that reads no weights"
        )
    for base, members in _KINDS[kind]:
        for name, member in _own_functions(base).items():
            # a method that neither the class nor a module in general has is nobody's way
            if member is not members.get(name) and (name in members or hasattr(nn.Module, name)):
                raise UnsupportedError(
                    f"the {name} of the class {base.__name__} was replaced; restore it"
                )
    if layer.training and isinstance(layer, _MODED):
        raise UnsupportedError(f"bounds want evaluation mode, got a {kind.__name__} in training")
    admit_tensors(layer)
    for child in layer._modules.values():
        if isinstance(child, nn.ModuleList):  # another class may hold more when it is read again
            admit(child)
    for attribute, value in vars(layer).items():
        if not _is_plain_option(value):
            raise UnsupportedError(
                f"bounds want options that are plain numbers or text, got a {kind.__name__} whose "
                f"{attribute} is a {type(value).__name__}; convert it"
            )
        if isinstance(value, Tensor):
            raise UnsupportedError(
                f"bounds want weights that are parameters or buffers, got a {kind.__name__} whose "
                f"{attribute} is a tensor beside them; register it"
            )


def _is_plain_option(value: Any) -> bool:
    """Whether a value is what it computes with: a subclass of a number may be two of them."""
    kind = type(value)
    if kind in (tuple, list, torch.Size):
        return all(map(_is_plain_option, value))
    if kind.__module__ == "numpy" or isinstance(value, Tensor):
        return True
    is_number = any(hasattr(kind, name) for name in ("__float__", "__index__"))
    if is_number or isinstance(value, str | complex | tuple | list):
        return kind in (bool, int, float, complex, str)
    return True


def admit_copying(module: nn.Module) -> None:
    """Raise on a module that is copied or converted in a way of its own; of any class.

    What is bounded is a copy in float64, what runs is the original.

    Args:
        module: Alone, without its submodules.

    Raises:
        UnsupportedError: Anything that `admit_call` and `admit_tensors` refuse, or a method that
            makes its copies, such as `__deepcopy__`.
    """
    admit_call(module)
    admit_tensors(module)
    for name in _COPYING:
        # as it is written, and as it is read: a way to read attributes may hand out another
        for found in (inspect.getattr_static(module, name, None), getattr(module, name, None)):
            function = getattr(found, "__func__", found)
            is_bound = getattr(found, "__self__", None) is module and isinstance(
                found, types.BuiltinMethodType | types.MethodWrapperType
            )
            is_plain = function is None or is_bound
            is_plain = is_plain or getattr(object, name, None) in (found, function)
            if not (is_plain or _is_from(function, _TORCH) or _is_from(function, _OURS)):
                raise UnsupportedError(
                    f"bounds want modules whose copies are what they are, got a "
                    f"{type(module).__name__} with a {name} of its own; remove it"
                )
    if type(module) in copyreg.dispatch_table:
        raise UnsupportedError(
            f"bounds want modules whose copies are what they are, got a {type(module).__name__} "
            "with an entry in copyreg.dispatch_table; remove it"
        )


def admit_tensors(module: nn.Module) -> None:
    """Raise on a module whose tensors may compute something else than plain ones do.

    Args:
        module: Alone, without its submodules.

    Raises:
        UnsupportedError: A parameter, buffer or attribute of a tensor subclass, or a sparse one.
    """
    check_type(module, "module", nn.Module)
    attributes = [value for value in vars(module).values() if isinstance(value, Tensor)]
    for tensor in (*module._parameters.values(), *module._buffers.values(), *attributes):
        if tensor is not None and type(tensor) not in (Tensor, nn.Parameter):
            raise UnsupportedError(
                f"bounds want plain tensors, got a {type(module).__name__} with weights of type "
                f"{type(tensor).__name__}; store them as torch.nn.Parameter"
            )
        if tensor is not None and tensor.layout != torch.strided:
            raise UnsupportedError(
                f"bounds want dense weights, got a {type(module).__name__} with the layout "
                f"{tensor.layout}; use weight.to_dense()"
            )
