"""Check one function of a learner: call it, in numpy or torch as it is written, compare its results with the right
ones, and name the mistake.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .gradients import compute_numeric_gradient
from .mistakes import GATES, MISTAKES, RARE
from .plain_cells import FORWARDS, backward, forward

SIZES = [dict(N=3, T=4, D=5, H=7, grid_h=2, grid_w=4, V=9), dict(N=1, T=2, D=3, H=2, grid_h=3, grid_w=1, V=6)]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}


class Mistake(Exception):
    """What is wrong with a learner's function, in a sentence."""


class Unusable(Mistake):
    """A mistake after which the results of a function can't be compared."""


def make_arguments(name: str, sizes: dict[str, int], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random arguments: a dict of tensors, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {}
    for argument, shape in (part.split() for part in FORWARDS[name][0].split("  ")):
        size = [_size(letters, sizes) for letters in shape.split(",")]
        if argument == "y":
            arguments["y"] = torch.randint(0, sizes["V"], size, generator=generator)
            arguments["y"][:, -1] = 0  # <NULL>
            arguments["y"][:, 0] = 1
        else:
            arguments[argument] = (0.7 * torch.randn(size, dtype=torch.float64, generator=generator)).to(dtype)
    return arguments


def _size(letters, sizes):
    """The size of a dimension such as "D" or "4H"."""
    name = letters.lstrip("0123456789")
    return int(letters.removesuffix(name) or 1) * sizes[name]


def check_forward(
    name: str, function: Callable, sizes: dict[str, int], seed: int, dtype: torch.dtype, first: str | None
) -> None:
    """Raises: Mistake if the results differ. Args: first, a function that the learner should correct first."""
    arguments = make_arguments(name, sizes, seed, dtype)
    names = FORWARDS[name][1].split()
    calls = [{"ignore_index": 0}, {}] if name == "temporal_softmax_loss" else [{}]
    for keywords in calls:

        def compute(wrong=(), keywords=keywords):
            return forward(name, exact(arguments) | keywords, wrong)

        results, rest = call_forward(function, arguments, names, keywords)
        compare(names, results, compute(), compute, first)
        if rest is not None and name == "temporal_softmax_loss":  # CS231n's loss returns the gradient too

            def gradient(wrong=(), keywords=keywords):
                x = exact(arguments)["x"].clone().requires_grad_()
                return torch.autograd.grad(forward(name, exact(arguments) | {"x": x} | keywords, wrong), x)

            compare(["dx"], as_list(rest, ["dx"]), gradient(), gradient, first)


def check_large_scores(name: str, function: Callable, dtype: torch.dtype) -> str:
    """A remark on a function whose softmax overflows, or an empty string."""
    if name not in ("temporal_softmax_loss", "dot_product_attention"):
        return ""
    arguments = make_arguments(name, SIZES[0], 0, dtype)
    if name == "temporal_softmax_loss":
        arguments["x"] += 1000
    else:
        arguments["A"] *= 1e5
    with np.errstate(all="ignore"):
        results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), {})
    if all(result.isfinite().all() for result in results):
        return ""
    return "but it overflows when the scores are large: subtract the largest one before exp"


def check_autograd(name: str, function: Callable) -> None:
    """Raises: Mistake if autograd does not find the right gradients of a forward in torch."""
    arguments = make_arguments(name, SIZES[0], 0, torch.float32)
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items()}
    result = function(*leaves.values())
    h = result[0] if isinstance(result, tuple | list) else result
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    if not h.requires_grad:
        raise Mistake(f"autograd can't find gradients through it: write {name.replace('forward', 'backward')} too")
    found = torch.autograd.grad(h, list(leaves.values()), upstream, allow_unused=True)
    wanted = backward(name, exact(arguments), (upstream.double(),))
    for key, gradient, right in zip(leaves, found, wanted):
        if gradient is None or not close(gradient, right):
            raise Mistake(f"with autograd, its gradient d{key} is wrong: is a tensor detached or copied?")


def check_backward(
    name: str,
    function: Callable,
    forward_function: Callable,
    forward_is_right: bool,
    sizes: dict[str, int],
    seed: int,
    dtype: torch.dtype,
    first: str | None,
) -> None:
    """Raises: Mistake if the gradients differ, or the function changes its arguments."""
    forward_name = name.replace("backward", "forward")
    arguments = make_arguments(forward_name, sizes, seed, dtype)
    names = FORWARDS[forward_name][1].split()
    results, cache = call_forward(forward_function, arguments, names, {})
    if cache is None:
        raise Mistake(f"it needs a cache, and your {forward_name} returns none after {', '.join(names)}")
    generator = torch.Generator().manual_seed(seed + 100)
    upstream = [torch.randn(r.shape, dtype=torch.float64, generator=generator).to(dtype) for r in results]
    names = ["d" + argument for argument in arguments]
    given = [to_kind(gradient, kind_of(function)) for gradient in upstream]
    found = as_list(function(*given, cache), names)
    wanted = tuple(gradient.double() for gradient in upstream)

    def compute(wrong=()):
        return backward(forward_name, exact(arguments), wanted, wrong)

    if forward_is_right:
        compare(names, found, compute(), compute, first)
    else:  # then compare with the gradient of the learner's own forward
        numeric = numeric_gradients(forward_function, forward_name, arguments, wanted)
        compare(names, found, numeric, of=" from the gradient of your own forward")
    for gradient, before in zip(given, upstream):
        if not torch.equal(from_kind(gradient), before):
            raise Mistake("it changes its argument, the upstream gradient, in place")
    try:
        again = as_list(function(*given, cache), names)
    except RuntimeError as error:
        if "second time" in str(error):  # autograd has freed its graph
            return
        raise
    if any(not torch.equal(a, b) for a, b in zip(found, again)):
        raise Mistake("a second call with the same cache gives another result: it changes its cache in place")


def numeric_gradients(
    function: Callable, name: str, arguments: dict[str, Tensor], upstream: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of the learner's own forward, by central differences."""
    gradients = []
    for key, value in exact(arguments).items():

        def loss(changed, key=key, value=value):
            results, _ = call_forward(
                function, arguments | {key: changed.to(value.dtype)}, FORWARDS[name][1].split(), {}
            )
            return sum((result.double() * gradient).sum() for result, gradient in zip(results, upstream))

        gradients.append(compute_numeric_gradient(loss, value, h=1e-5))
    return tuple(gradients)


def call_forward(
    function: Callable, arguments: dict[str, Tensor], names: list[str], keywords: dict
) -> tuple[list[Tensor], Any]:
    """The results of a learner's forward, as tensors, and its cache or None."""
    kind, loss = kind_of(function), "y" in arguments
    given = [to_kind(value, kind) for value in arguments.values()]
    if loss and "mask" in inspect.signature(function).parameters:  # CS231n's loss takes a mask of the words that count
        counted = arguments["y"] != keywords["ignore_index"] if keywords else torch.ones_like(arguments["y"]) == 1
        keywords = {"mask": to_kind(counted, kind)}
    try:
        returned = function(*given, **keywords)
    except TypeError:
        if not loss or keywords:
            raise
        returned = function(*given, ignore_index=-100)  # the value with which F.cross_entropy ignores nothing
    for key, value, now in zip(arguments, arguments.values(), given):
        if not torch.equal(from_kind(now), value):
            raise Mistake(f"it changes its argument {key} in place")
    cache = None
    if isinstance(returned, tuple | list) and len(returned) == len(names) + 1:
        *returned, cache = returned
    return as_list(returned, names, "" if loss or "attn_weights" in names else ", cache"), cache


def as_list(returned: Any, names: list[str], more: str = "") -> list[Tensor]:
    """The results of a function, one tensor for each name. Args: more, what else it may return, for the message."""
    if not isinstance(returned, tuple | list):
        returned = [returned]
    wanted = ", ".join(names) + more
    if len(returned) != len(names):
        raise Unusable(f"it returns {len(returned)} values, wanted {wanted}")
    for name, value in zip(names, returned):
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic | float | int):
            raise Unusable(f"its result {name} is a {type(value).__name__}; wanted {wanted}")
    return [from_kind(value) for value in returned]


def compare(
    names: list[str],
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    compute: Callable | None = None,
    first: str | None = None,
    of: str = "",
) -> None:
    """Raises: Mistake if ``found`` differs from ``wanted``. It names the known mistake with which ``compute`` gives the
    same results, or else the function that the learner should correct ``first``."""
    for name, a, b in zip(names, found, wanted):
        if a.shape != b.shape:
            turned = ": it is transposed" if a.dim() == b.dim() == 2 and a.shape == b.T.shape else ""
            known = turned + diagnose(found, wanted, compute, first)
            raise Mistake(f"{name} has shape {tuple(a.shape)}, wanted {tuple(b.shape)}{known}")
    bad = [name for name, a, b in zip(names, found, wanted) if not close(a, b)]
    if bad:
        a, b = next((a, b) for name, a, b in zip(names, found, wanted) if name == bad[0])
        off = "is not finite" if not a.isfinite().all() else f"is off by up to {(a - b).abs().max():.2g}"
        others = f" ({', '.join(bad[1:])} too)" if bad[1:] else ""
        known = diagnose(found, wanted, compute, first)
        if compute is not None:  # otherwise no mistake was tried
            known = known or hint(names, found, wanted)
        raise Mistake(f"{bad[0]} {off}{of} (the right values reach {b.abs().max():.2g}){others}{known}")


def diagnose(found: Sequence[Tensor], wanted: Sequence[Tensor], compute: Callable | None, first: str | None) -> str:
    """The end of a message: the mistake, or two, with which the plain cells give the same results; or what to correct
    first; or an empty string."""
    if compute is None:
        return ""

    def explains(wrong):
        results = compute(wrong)
        return same(found, results) and not same(results, wanted)

    for name, sentence in MISTAKES.items():
        if explains((name,)):
            return f": {sentence}"
    if first:
        return f": correct your {first} first"
    possible = [name for name in MISTAKES if name not in RARE and not same(compute((name,)), wanted)]
    for pair in combinations(possible, 2):
        if explains(pair):
            return f": two mistakes: {MISTAKES[pair[0]]}; and {MISTAKES[pair[1]]}"
    return ""


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(close(a, b) for a, b in zip(some, others))


def hint(names: list[str], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Where to look for an unknown mistake: the gates whose part of db is wrong are closest to it."""
    pairs = {name: (a, b) for name, a, b in zip(names, found, wanted)}
    text = ": neither one nor two of the known mistakes explain it"
    if "db" not in pairs:
        return text
    if close(*pairs["dx"]):
        return text + "; da is right, look at the lines that use it"
    gates = next(
        (g.lower() for g in GATES.values() if len(g) * pairs["dWh"][1].shape[0] == pairs["dWh"][1].shape[1]), ""
    )
    if not gates:
        return text
    parts = zip(gates, *(gradient.chunk(len(gates)) for gradient in pairs["db"]))
    wrong = [gate for gate, a, b in parts if not close(a, b)]
    return text + (f"; look at da of {', '.join(wrong)}" if wrong else "; da is right, look at the lines that use it")


def close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = TOLERANCE[torch.float64 if a.dtype == torch.float64 else torch.float32]
    return bool(((a.double() - b.double()).abs() <= tolerance * (1 + b.double().abs().max())).all())


def exact(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments in float64."""
    return {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}


# ----------------------------------------------------------------------------- numpy or torch


def kind_of(function: Callable) -> str:
    """ "torch" or "numpy": which of the two a function and its helpers use, or else which one its file imports."""
    module = sys.modules.get(function.__module__)
    seen: set[str] = set()
    waiting: list[Any] = [function]
    while waiting:
        code = getattr(waiting.pop(), "__code__", None)
        for name in code.co_names if code else ():
            value = getattr(module, name, None)
            if value is torch or value is np:
                return value.__name__
            if inspect.isfunction(value) and name not in seen:
                seen.add(name)
                waiting.append(value)
    return "torch" if any(value is torch for value in vars(module).values()) else "numpy"


def to_kind(tensor: Tensor, kind: str) -> Tensor | np.ndarray:
    """A copy of a tensor, for a function in torch or numpy."""
    return tensor.clone() if kind == "torch" else tensor.numpy().copy()


def from_kind(value: Any) -> Tensor:
    """A copy of a result, as a tensor."""
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    return copy.deepcopy(tensor) if tensor.is_floating_point() or tensor.dtype == torch.int64 else tensor.double()
