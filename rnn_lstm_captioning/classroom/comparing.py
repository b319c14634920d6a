"""Compare a learner's results with the right ones, and name the mistake that explains the difference."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from .calling import Mistake
from .mistakes import MISTAKES, RARE
from .plain_cells import FORWARDS, PLAIN_CELLS
from .plain_passes import forward, possible_mistakes

# sizes at which nothing is equal by chance; the grid is square, as in the course
SIZES = dict(N=3, T=4, D=5, H=7, grid_h=3, grid_w=3, V=11)
SPECIAL_SIZES = {  # where a squeeze() or a broadcast shows
    "T = 1": dict(N=2, T=1, D=3, H=5, grid_h=2, grid_w=2, V=6),
    "N = 1": dict(N=1, T=3, D=4, H=2, grid_h=3, grid_w=3, V=5),
    "H = 1": dict(N=3, T=2, D=2, H=1, grid_h=2, grid_w=2, V=4),
    "N = D = H": dict(N=4, T=3, D=4, H=4, grid_h=2, grid_w=2, V=4),
}
OTHER_GRID = dict(N=3, T=2, D=5, H=7, grid_h=2, grid_w=4, V=9)
UNKNOWN = ": no known mistake gives these values"
TOLERANCE = {torch.float64: 5e-6, torch.float32: 1e-4}  # a learner may compute in float32 and return float64


def make_arguments(name: str, sizes: Mapping[str, int], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
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


def compare(
    names: Sequence[str],
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    explain: Callable[[], str] = lambda: "",
) -> None:
    """Raises: Mistake if ``found`` differs from ``wanted``. Args: explain, called for the end of its sentence."""
    places = [next((k for k, a in enumerate(found) if close(a, b)), None) for b in wanted]
    if len(found) > 1 and sorted(places, key=str) == list(range(len(places))) != places:
        raise Mistake(f"its results are in the wrong order: return {', '.join(names)}")
    for name, a, b in zip(names, found, wanted):
        if a.shape != b.shape:
            turned = ": it is transposed" if a.dim() == b.dim() == 2 and a.shape == b.T.shape else ""
            raise Mistake(f"{name} has shape {tuple(a.shape)}, wanted {tuple(b.shape)}{turned or explain()}")
    bad = [name for name, a, b in zip(names, found, wanted) if not close(a, b)]
    if bad:
        a, b = next((a, b) for name, a, b in zip(names, found, wanted) if name == bad[0])
        off = "is not finite" if not a.isfinite().all() else f"is off by up to {(a - b).abs().max():.2g}"
        others = f" ({', '.join(bad[1:])} too)" if bad[1:] else ""
        raise Mistake(f"{bad[0]} {off} (the right values reach {b.abs().max():.2g}){others}{explain()}")


def diagnose(
    found: Sequence[Tensor],
    compute: Callable[[Collection[str]], Sequence[Tensor]],
    names: Collection[str] = tuple(MISTAKES),
    pairs: Collection[str] | None = None,
) -> str:
    """The end of a message, with the mistake, or two, with which ``compute`` gives the same results; "" if none does.

    Args: names, the mistakes to try, in their order; pairs, those of which two are tried at once (None: all of them).
    """
    wanted, changed = compute(()), {}
    for name in possible_mistakes(compute):
        if name not in names:
            continue
        values = compute((name,))
        if not same(values, wanted):
            if same(found, values):
                return f": {MISTAKES[name]}"
            changed[name] = values
    likely = [name for name in changed if name not in RARE and (pairs is None or name in pairs)]
    if likely:
        seen, right = _parts(found), _parts(wanted)
        if len(seen) != len(right):
            return ""
        is_right = [close(a, b) for a, b in zip(seen, right)]
        effects = {name: _effect(seen, right, _parts(changed[name])) for name in likely}
        for pair in combinations(likely, 2):
            if _may_explain(is_right, effects[pair[0]], effects[pair[1]]) and same(found, compute(pair)):
                return f": two mistakes: {MISTAKES[pair[0]]}; and {MISTAKES[pair[1]]}"
    return ""


def _parts(values):
    """The results, with the columns of each gate on their own."""
    found: list[Tensor] = []
    for value in values:
        gates, rest = divmod(value.shape[-1] if value.dim() else 1, SIZES["H"])
        found += value.chunk(gates, -1) if gates > 1 and not rest else [value]
    return found


def _effect(found, right, changed):
    """For each part of the results: whether a mistake changes it, and whether the learner's part is as changed."""
    return [(not close(value, b), close(a, value)) for a, b, value in zip(found, right, changed)]


def _may_explain(is_right, first, second):
    """Whether two mistakes together can give the learner's results: a part that only one of them changes must be as
    that one makes it, and a part that none changes must be right. This needs no computation."""
    for right, (changes, fits), (also_changes, also_fits) in zip(is_right, first, second):
        if not (changes and also_changes) and not (fits if changes else also_fits if also_changes else right):
            return False
    return True


@functools.cache
def backward_mistakes(name: str) -> frozenset[str]:
    """The mistakes that explain a wrong backward of a right forward: those that leave the values of ``name`` alone, and
    the loops that leave out steps."""
    arguments = make_arguments(name, SIZES, 0, torch.float64)

    def compute(wrong: Collection[str] = ()) -> Sequence[Tensor]:
        return forward(name, arguments, wrong)

    right = compute()
    changing = {mistake for mistake in possible_mistakes(compute) if not same(compute((mistake,)), right)}
    return frozenset(MISTAKES) - (changing - {"first skipped", "last skipped", "one step alone"})


def hint(name: str, names: Sequence[str], found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Where to look for an unknown mistake in the backward pass of a step."""
    pairs = {key: (a, b) for key, a, b in zip(names, found, wanted)}
    if "db" not in pairs:
        return UNKNOWN
    wrong = [key for key, (a, b) in pairs.items() if not close(a, b)]
    if close(*pairs["dx"]):
        return UNKNOWN + f"; dx is right, so da is too: look at the lines of {', '.join(wrong)}"
    cell = PLAIN_CELLS.get(name.split("_")[0])
    gates = cell.gates.lower() if cell else ""
    if not gates:
        return UNKNOWN
    parts = zip(gates, *(gradient.chunk(len(gates)) for gradient in pairs["db"]))
    bad = [gate for gate, a, b in parts if not close(a, b)]
    if bad:
        return UNKNOWN + f"; look at da of {', '.join(bad)}"
    return UNKNOWN + "; db is right, so da is too: look at the lines that use it"


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(close(a, b) for a, b in zip(some, others))


def close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = TOLERANCE[torch.float64 if a.dtype == torch.float64 else torch.float32]
    return bool(((a.double() - b.double()).abs() <= tolerance * (1 + b.double().abs().max())).all())


def exact(arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arguments in float64."""
    return {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}
