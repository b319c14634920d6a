"""The cache that a right forward would have made, so that a backward can be judged behind a wrong forward."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .calling import Function, call_forward, map_cache
from .comparing import close, exact, same
from .mistakes import MISTAKES
from .plain_cells import FORWARDS
from .plain_passes import forward


def with_steps(cache: Any, steps: list) -> Any:
    """A cache in which a list with one part for each time step has these parts."""
    if isinstance(cache, list | tuple) and not hasattr(cache, "_fields"):
        if len(cache) == len(steps) and all(type(a) is type(b) for a, b in zip(cache, steps)):
            return type(cache)(steps)
        return type(cache)(with_steps(part, steps) for part in cache)
    if isinstance(cache, dict):
        if list(cache) == list(range(len(steps))):
            return dict(enumerate(steps))
        return {key: with_steps(part, steps) for key, part in cache.items()}
    return cache


def corrected_step_caches(
    name: str, arguments: Mapping[str, Tensor], function: Function, cache: tuple
) -> Iterator[tuple[tuple, bool]]:
    """Two ways: with the known mistake of the forward, or by the right value that each cached value is nearest to."""
    given = exact(arguments)
    results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), {})
    right: dict[str, Tensor] = {}
    forward(name, given, (), right)
    for mistake in MISTAKES:
        values: dict[str, Tensor] = {}
        made = forward(name, given, (mistake,), values)
        if same(results, made) and not same(made, forward(name, given)):
            change = _Corrector(given, values, right, exactly=True)
            yield map_cache(cache, change), not change.unknown
            break
    change = _Corrector(given, right, right, exactly=False)
    yield map_cache(cache, change), False


class _Corrector:
    """Replaces a cached value by the right value of the same quantity; arguments stay."""

    def __init__(self, given, values, right, exactly):
        self.given, self.values, self.right, self.exactly = given, values, right, exactly
        self.unknown = False

    def __call__(self, array):
        if not array.is_floating_point() or any(close(array, value) for value in self.given.values()):
            return None
        found = self._find(array)
        if found is None and array.dim() == 2:  # gates side by side
            H = self.right["h"].shape[1] if "h" in self.right else array.shape[1]
            if array.shape[1] > H and array.shape[1] % H == 0:
                parts = [self._find(part) for part in array.split(H, 1)]
                found = None if any(part is None for part in parts) else torch.cat(parts, 1)
        self.unknown |= found is None
        return found

    def _find(self, array):
        """The right value of the quantity whose value is this array, or nearest to it."""
        if self.exactly:
            names = [key for key, value in self.values.items() if close(array, value)]
            self.unknown |= any(not close(self.right[name], self.right[names[0]]) for name in names)
            return self.right[names[-1]] if names else None  # a step's results come last
        distances = {
            key: ((array - value).norm() / value.norm()).item()
            for key, value in self.right.items()
            if value.shape == array.shape
        }
        nearest = min(distances, key=lambda key: distances[key], default=None)
        return self.right[nearest] if nearest is not None and distances[nearest] < 0.9 else None
