"""How much a call computes: the same number on every machine, unlike its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PER_SECOND = 2e9
"""Operations of small layers on one core; machines differ by a few times, and no result does."""


def seconds_of(call: Callable[[], Any]) -> float:
    """About what a call takes, by the multiplications in its products and convolutions.

    Examples:
        >>> import torch
        >>> from robustvae.models.operations import seconds_of
        >>> weights = torch.ones(100, 1000)
        >>> seconds_of(lambda: weights @ weights.mT)
        0.01
    """
    with _Operations() as counter:
        call()
    return counter.total / PER_SECOND


@final
class _Operations(TorchDispatchMode):
    """Counts what torch computes within; unlike torch's own counter, it sets no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
