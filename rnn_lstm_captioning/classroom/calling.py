"""A learner's functions, in whatever style they are written: in numpy or torch, as functions, as methods, or as the
classes of the course. Here they all become a :class:`Function`, which takes tensors and returns tensors."""

import ast
import copy
import inspect
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cells import CELLS
from .plain_cells import FORWARDS, ORDER

PACKAGE = __name__.split(".")[0]


class Mistake(Exception):
    """What is wrong with a learner's function, in a sentence."""


class Unusable(Mistake):
    """A mistake after which the results of a function can't be compared."""


class Function:
    """One of a learner's functions.

    Attributes: name, of the function that it stands for, such as "lstm_step_forward"; label, what the learner calls it;
        code, what is called; written, what the learner wrote; kind, "torch" or "numpy", a guess until a call worked.
    """

    def __init__(self, name: str, label: str, code: Callable, inner: Callable | None = None) -> None:
        self.name, self.label, self.code, self.written = name, label, code, inner or code
        self.kind, self.settled = kind_of(self.written), False
        self.remarks: list[str] = []

    def __call__(self, *tensors: Tensor, cache: tuple = (), **keywords: Any) -> Any:
        """Call the function with copies of tensors, and then with a cache, a tuple of at most one element.

        A file may import numpy and torch; so if the first kind fails, the other one is tried.
        """
        if self.settled:
            return self._call(self.kind, tensors, cache, keywords)
        guess, other = self.kind, "numpy" if self.kind == "torch" else "torch"
        try:
            returned = self._call(guess, tensors, cache, keywords)
        except (TypeError, AttributeError) as error:  # what numpy says of tensors, and torch of arrays
            try:
                returned = self._call(other, tensors, cache, keywords)
            except Exception:  # then the first error is the one to show
                raise error from None
            self.kind = other
        self.settled = True
        return returned

    def _call(self, kind, tensors, cache, keywords):
        given = [to_kind(tensor, kind) for tensor in tensors]
        keywords = {k: to_kind(v, kind) if isinstance(v, Tensor) else v for k, v in keywords.items()}
        with np.errstate(all="ignore"):
            returned = self.code(*given, *cache, **keywords)
        for key, now, before in zip(self.arguments(), given, tensors):
            if not torch.equal(from_kind(now), before):
                self.remark(f"it changes its argument {key} in place: copy it first")
        if returned is None or (isinstance(returned, tuple | list) and returned and all(v is None for v in returned)):
            if is_starter(self.written):  # the course's starter files return None
                raise NotImplementedError
            raise Unusable("it returns None: is a return missing?")
        return returned

    def remark(self, text: str) -> None:
        """Add a remark, which is printed once, and does not make the function wrong."""
        if text not in self.remarks:
            self.remarks.append(text)

    def arguments(self) -> list[str]:
        """The names of the tensors that the function takes."""
        arguments, results = FORWARDS[self.name.replace("backward", "forward")]
        if "backward" in self.name:
            return ["d" + result for result in results.split()]
        return [part.split()[0] for part in arguments.split("  ")]

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of this name."""
        try:
            parameters = inspect.signature(self.code).parameters.values()
        except (TypeError, ValueError):
            return False
        return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def find_functions(module: ModuleType) -> dict[str, Function]:
    """A learner's functions by name, in the order of the checks: functions, else methods with their names, else the
    methods of the course's classes."""
    found = {}
    for name in ORDER:
        function = getattr(module, name, None)
        if callable(function):
            found[name] = Function(name, name, function)
    classes = [
        value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    for owner in classes:
        for name in ORDER:
            if name not in found and callable(getattr(owner, name, None)):
                found[name] = Function(name, f"{owner.__name__}.{name}", _method(owner, name), getattr(owner, name))
    by_name = {owner.__name__: owner for owner in classes}
    for cell in CELLS.values():
        if cell.__name__ in by_name:
            for name, function in _functions_of_class(cell.prefix, by_name[cell.__name__]).items():
                found.setdefault(name, function)
    return {name: found[name] for name in ORDER if name in found}


def _method(owner, name):
    """A method as a function; the object is made at the first call, and kept."""
    objects: list = []

    def call(*arguments, **keywords):
        if not objects:
            try:
                objects.append(owner())
            except TypeError as error:
                raise Unusable(f"{owner.__name__}() can't be made without arguments: {error}") from error
        return getattr(objects[0], name)(*arguments, **keywords)

    return call


def _functions_of_class(prefix, owner):
    """The methods of a class such as ``LSTM(input_dim, hidden_dim)`` with the parameters Wx, Wh and b as functions.

    Between a forward and a backward the object is the cache, together with what the forward returned for one.
    """
    names = [part.split()[0] for part in FORWARDS[f"{prefix}_forward"][0].split("  ")][2:]

    def forward(method):
        def call(x, *rest):
            inputs, weights = rest[: -len(names)], rest[-len(names) :]
            H = weights[1].shape[0]
            try:
                made = owner(x.shape[-1], H)
            except TypeError as error:
                raise Unusable(f"{owner.__name__}(input_dim, hidden_dim) can't be made: {error}") from error
            for name, value in zip(names, weights):
                before = getattr(made, name, None)
                if before is None:
                    raise Unusable(f"{owner.__name__} has no parameter {name}")
                if isinstance(before, torch.nn.Parameter):
                    before.data = torch.as_tensor(value)
                else:
                    setattr(made, name, value)
            returned = getattr(made, method)(x, *inputs)
            results = FORWARDS[f"{prefix}_{'step_' if 'step' in method else ''}forward"][1].split()
            if not isinstance(returned, tuple | list):
                returned = (returned,)
            values, cache = list(returned[: len(results)]), list(returned[len(results) :])
            return (*values, (made, cache)) if any(v is not None for v in values) else None

        return call

    def backward(method):
        def call(*arguments):
            *gradients, (made, cache) = arguments
            return getattr(made, method)(*gradients, *cache)

        return call

    methods = {"step_forward": forward, "step_backward": backward, "forward": forward, "backward": backward}
    return {
        f"{prefix}_{method}": Function(
            f"{prefix}_{method}", f"{owner.__name__}.{method}", make(method), getattr(owner, method)
        )
        for method, make in methods.items()
        if method in {name for base in owner.__mro__ if base.__module__ == owner.__module__ for name in vars(base)}
    }


def is_starter(function: Callable) -> bool:
    """Whether a function that returns None is as in a course's starter file, with ``pass`` or a name set to None."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # its source can't be found
        return True
    set_to = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    values = [part for value in set_to for part in (value.elts if isinstance(value, ast.Tuple) else [value])]
    nothing = any(isinstance(value, ast.Constant) and value.value is None for value in values)
    return nothing or any(isinstance(node, ast.Pass) for node in ast.walk(tree)) or not set_to


def borrowed(function: Function) -> bool:
    """Whether a function is one of this package, or calls one."""
    code = function.written
    if str(getattr(code, "__module__", "")).startswith(PACKAGE):
        return True
    module = sys.modules.get(getattr(code, "__module__", ""))
    return any(
        str(getattr(value, "__module__", None) or getattr(value, "__name__", "")).startswith(PACKAGE)
        for value in (getattr(module, name, None) for name in _names_in(code))
        if value is not None
    )


def calls(function: Callable, known: Collection[str]) -> list[str]:
    """Which of some functions of its file a function uses, directly or through others."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    found: list[str] = []
    waiting, seen = [function], set()
    while waiting:
        for name in _names_in(waiting.pop()):
            if name not in seen:
                seen.add(name)
                found += [name] if name in known else []
                if inspect.isfunction(getattr(module, name, None)):
                    waiting.append(getattr(module, name))
    return found


def _names_in(function):
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()


# ------------------------------------------------------------------------------- results and caches


def call_forward(
    function: Function, arguments: Mapping[str, Tensor], names: list[str], keywords: Mapping[str, Any]
) -> tuple[list[Tensor], tuple]:
    """The results of a learner's forward, as tensors, and its cache in a tuple, which is empty if there is none."""
    loss, given = "y" in arguments, dict(keywords)
    if loss and function.takes("mask") and not function.takes("ignore_index"):  # CS231n's loss: the words that count
        y = arguments["y"]
        given = {"mask": y != given["ignore_index"] if given else torch.ones_like(y) == 1}
    try:
        returned = function(*arguments.values(), **given)
    except TypeError:
        if not loss or "mask" in given:
            raise
        # its third argument may have another name; and -100 is what F.cross_entropy ignores if nothing is said
        returned = function(*arguments.values(), cache=(given.get("ignore_index", -100),))
    cache: tuple = ()
    if isinstance(returned, tuple | list) and len(returned) == len(names) + 1:
        *returned, last = returned
        cache = (last,)
    return as_list(returned, names, "" if loss or "attn_weights" in names else ", cache"), cache


def as_list(returned: Any, names: Sequence[str], more: str = "") -> list[Tensor]:
    """The results of a function, one tensor for each name. Args: more, what else it may return, for the message."""
    if not isinstance(returned, tuple | list):
        returned = [returned]
    wanted = ", ".join(names) + more
    if len(returned) != len(names):
        raise Unusable(f"it returns {len(returned)} values, wanted {wanted}")
    results = []
    for name, value in zip(names, returned):
        if value is None:
            raise Unusable(f"its result {name} is None; wanted {wanted}")
        try:
            results.append(from_kind(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise Unusable(f"its result {name} is a {type(value).__name__}; wanted {wanted}") from error
    return results


def map_cache(cache: Any, change: Callable[[Tensor], Tensor | None], seen: int = 0) -> Any:
    """A cache of any structure, in which ``change`` has replaced arrays (None: keep this one)."""
    if isinstance(cache, torch.Tensor | np.ndarray):
        array = from_kind(cache)
        found = change(array)
        if found is None:
            return cache
        return to_kind(found.to(array.dtype), "torch" if isinstance(cache, torch.Tensor) else "numpy")
    if seen > 6:
        return cache
    if isinstance(cache, dict):
        return {key: map_cache(value, change, seen + 1) for key, value in cache.items()}
    if isinstance(cache, tuple) and hasattr(cache, "_fields"):
        return type(cache)(*(map_cache(value, change, seen + 1) for value in cache))
    if isinstance(cache, tuple | list):
        return type(cache)(map_cache(value, change, seen + 1) for value in cache)
    if hasattr(cache, "__dict__") and not isinstance(cache, type | ModuleType) and not callable(cache):
        changed = copy.copy(cache)
        vars(changed).update({key: map_cache(value, change, seen + 1) for key, value in vars(cache).items()})
        return changed
    return cache


# ----------------------------------------------------------------------------------- numpy or torch


def kind_of(function: Callable) -> str:
    """ "torch" or "numpy": which of the two a function and its helpers use, or else which one its file imports."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    seen: set[str] = set()
    waiting: list[Any] = [function]
    while waiting:
        for name in _names_in(waiting.pop()):
            value = getattr(module, name, None)
            if value is torch or value is np:
                return value.__name__
            if str(getattr(value, "__module__", "")).split(".")[0] == "torch":
                return "torch"
            if inspect.isfunction(value) and name not in seen:
                seen.add(name)
                waiting.append(value)
    return "torch" if module and any(value is torch for value in vars(module).values()) else "numpy"


def to_kind(tensor: Tensor, kind: str) -> Tensor | np.ndarray:
    """A copy of a tensor, for a function in torch or numpy."""
    return tensor.clone() if kind == "torch" else tensor.numpy().copy()


def from_kind(value: Any) -> Tensor:
    """A copy of a result, as a tensor. Raises: TypeError or ValueError if it is no number or array of numbers."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, torch.Tensor) for part in value):
        value = torch.stack([part.detach() for part in value])
    if isinstance(value, torch.Tensor):
        tensor = value.detach().clone()
    else:
        if not isinstance(value, np.ndarray | np.generic | float | int | list | tuple):
            raise TypeError("it is no array")
        tensor = torch.from_numpy(np.array(value, order="C"))  # a copy, so that strides may be negative
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.int64 else tensor.double()
