"""Judge one function of a learner, and put the blame where it belongs: one root cause, one verdict.

A function that is wrong only because another one of the file is wrong waits for that one. Whether it is so is tried,
and not guessed: a loop over time is compared with the right loop over the learner's own steps, and a backward pass gets
the cache of a right forward pass.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .calling import Function, Mistake, Unusable, as_list, borrowed, call_forward, calls, map_cache
from .comparing import OTHER_GRID, SIZES, SPECIAL_SIZES, close, compare, diagnose, exact, hint, make_arguments, same
from .gradients import compute_numeric_gradient
from .mistakes import LOOP, MISTAKES
from .plain_cells import FORWARDS, PLAIN_CELLS, SEQUENCES, Loop, backward, forward

BORROWED = f"it uses functions of {__name__.split('.')[0]}"
NOT_RIGHT = ("wrong", "failed", "waits", "todo")


class Judgement(NamedTuple):
    """An outcome, "right", "wrong", "waits" (for another function), "unchecked" or "todo", and a message."""

    outcome: str
    message: str = ""


class Learner:
    """All functions of a file, and the outcomes of those that were judged before."""

    def __init__(self, functions: Mapping[str, Function], outcomes: dict[str, str], dtype: torch.dtype) -> None:
        self.functions, self.outcomes, self.dtype = functions, outcomes, dtype

    def has(self, name: str) -> bool:
        return name in self.functions and self.outcomes.get(name) != "todo"

    def is_right(self, name: str) -> bool:
        return self.outcomes.get(name) == "right"

    def label(self, name: str) -> str:
        return self.functions[name].label if name in self.functions else name


def judge(name: str, learner: Learner) -> Judgement:
    """Judge one function. Raises: NotImplementedError if it is not written yet, and whatever the function raises."""
    function = learner.functions[name]
    if name.endswith("backward"):
        forward_name = name.replace("backward", "forward")
        reasons = {None: "is not in the file", "todo": "is not written yet", "failed": "fails"}
        reason = reasons.get(learner.outcomes.get(forward_name))
        if reason:
            _try_without_a_cache(name, function)
            return Judgement(
                "unchecked", f"it needs the cache of your own {learner.label(forward_name)}, which {reason}"
            )
    try:
        judged = judge_backward(name, learner) if name.endswith("backward") else judge_forward(name, learner)
    except Mistake as mistake:
        remarks = [remark for remark in function.remarks if "in place" in remark]  # they may be the reason
        raise type(mistake)("; ".join([str(mistake), *remarks])) from None
    if judged.outcome != "right":
        return judged
    if borrowed(function):
        function.remark(BORROWED)
    return Judgement("right", "but " + "; ".join(function.remarks) if function.remarks else "")


def _try_without_a_cache(name, function):
    """Raise NotImplementedError if a backward is as it is in the course's starter file, where it returns None."""
    forward_name = name.replace("backward", "forward")
    results = forward(forward_name, make_arguments(forward_name, SIZES, 0, torch.float64))
    try:
        function(*results, cache=(None,))
    except NotImplementedError:
        raise
    except Exception:  # it is written, and needs its cache
        return


# ---------------------------------------------------------------------------------------- forward


def judge_forward(name: str, learner: Learner) -> Judgement:
    """Judge a step, a sequence, the attention or the loss."""
    function = learner.functions[name]
    for label, sizes in {"": SIZES, **SPECIAL_SIZES}.items():
        arguments = make_arguments(name, sizes, 0, learner.dtype)
        for keywords in _ways_to_call(name, arguments):
            try:
                _compare_forward(name, function, learner, arguments, keywords, diagnosed=not label)
            except Waits as reason:
                return Judgement("waits", str(reason))
            except (NotImplementedError, Unusable):
                raise
            except Mistake as mistake:
                if not label:
                    raise
                raise Mistake(f"with {label}, {mistake}{_about_sizes(str(mistake))}") from None
            except Exception as error:
                if label:
                    raise Mistake(f"with {label}, it raises {type(error).__name__}: {_first_line(error)}") from error
                raise
    _try_other_inputs(name, function, learner)
    return Judgement("right")


class Waits(Exception):
    """Why a function can't be judged before another one is right."""


def _about_sizes(text):
    return ": is there a squeeze(), or a broadcast?" if "has shape" in text or "is off" in text else ""


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0][:200]


def _ways_to_call(name, arguments):
    """The keywords of each call: for the loss, some values of ignore_index."""
    if name != "temporal_softmax_loss":
        return [{}]
    return [{"ignore_index": 0}, {}, {"ignore_index": int(arguments["y"][0, 0])}]


def _compare_forward(name, function, learner, arguments, keywords, diagnosed):
    names = FORWARDS[name][1].split()

    def compute(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
        return forward(name, exact(arguments) | keywords, wrong)

    results, rest = call_forward(function, arguments, names, keywords)
    wanted = compute()
    if not same(results, wanted):
        explain = (lambda: _explain_forward(name, learner, arguments, results, compute)) if diagnosed else (lambda: "")
        compare(names, results, wanted, explain)
    if rest and name == "temporal_softmax_loss":  # CS231n's loss returns the gradient too

        def gradient(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
            x = exact(arguments)["x"].clone().requires_grad_()
            return torch.autograd.grad(forward(name, exact(arguments) | {"x": x} | keywords, wrong), x)

        found = as_list(rest[0], ["dx"])
        compare(["dx"], found, gradient(), lambda: diagnose(found, gradient) if diagnosed else "")


def _explain_forward(name, learner, arguments, found, compute):
    """The end of a sentence about a wrong forward. Raises: Waits if another function is the root."""
    if name not in SEQUENCES:
        known = diagnose(found, compute, pairs=False)
        if not known:
            _wait_for_what_it_calls(name, learner)
        return known or diagnose(found, compute) or UNKNOWN
    roots = [root for root in _roots_of(name) if learner.has(root) and learner.outcomes.get(root) in NOT_RIGHT]
    loop = _own_loop(name, learner) if all(learner.has(root) for root in _roots_of(name)[:1]) else None
    if loop and roots:
        own = _own_results(loop, arguments)
        if own and same(found, own):
            raise Waits(f"it is right once your {learner.label(roots[0])} is: correct that first")
        known = diagnose(found, lambda wrong: _own_results(loop, arguments, wrong) or compute(()), LOOP, pairs=False)
        if known:
            return known
    known = diagnose(found, compute, pairs=False)
    if known:
        return known
    if roots:
        raise Waits(f"it can't be judged before your {learner.label(roots[0])} is right: correct that first")
    known = diagnose(found, compute, LOOP)
    step = _roots_of(name)[-1]
    text = f"your {learner.label(step)} is right: look at the loop over time" if learner.is_right(step) else ""
    return known or f": none of the known mistakes explains it; {text or _where_in_time(found[0], compute(())[0])}"


UNKNOWN = ": neither one nor two of the known mistakes explain it"


def _wait_for_what_it_calls(name, learner):
    """Raise Waits if a function calls another one that is wrong."""
    for root in calls(learner.functions[name].code, set(learner.functions) - {name}):
        if learner.outcomes.get(root) in NOT_RIGHT:
            raise Waits(f"it can't be judged before your {learner.label(root)} is right: correct that first")


def _where_in_time(found, wanted):
    right = [t for t in range(wanted.shape[1]) if close(found[:, t], wanted[:, t])]
    if right and right[0] == 0:
        return "the first step is right, so look at what is carried from step to step"
    return "the first step is wrong already: look at the step, and at how it starts"


def _roots_of(name):
    """The functions that a sequence may call, in the order in which they should be corrected."""
    direction = name.rpartition("_")[2]
    prefix = name.split("_")[0]
    if PLAIN_CELLS[prefix].inputs:
        return ["dot_product_attention", f"{prefix}_step_{direction}"]
    return [f"{prefix}_step_{direction}"]


def _own_loop(name: str, learner: Learner) -> Loop:
    """The right loop over time around the learner's own steps."""
    prefix = name.split("_")[0]
    cell = PLAIN_CELLS[prefix]
    steps = {way: learner.functions.get(f"{prefix}_step_{way}") for way in ("forward", "backward")}
    attention = learner.functions.get("dot_product_attention")
    names = FORWARDS[f"{prefix}_step_forward"][1].split()
    S = len(cell.state)

    def step_forward(x: Tensor, state: tuple, image: Tensor, first: tuple, weights: tuple) -> tuple:
        inputs = cell.look(state, image, first, ())
        if cell.inputs and attention and learner.has("dot_product_attention"):
            inputs = (call_forward(attention, {"prev_h": state[0], "A": image}, ["attn", "attn_weights"], {})[0][0],)
        assert steps["forward"] is not None
        given = dict(enumerate((x, *state, *inputs, *weights)))
        values, cache = call_forward(steps["forward"], given, names, {})  # type: ignore[arg-type]
        return tuple(values), (cache, x, image, weights)

    def step_backward(dstate: tuple, cache: tuple) -> tuple:
        own, x, image, weights = cache
        assert steps["backward"] is not None
        wanted = ["d" + part.split()[0] for part in FORWARDS[f"{prefix}_step_forward"][0].split("  ")]
        found = as_list(steps["backward"](*dstate, cache=own), wanted)
        return found[0], tuple(found[1 : 1 + S]), torch.zeros_like(image), tuple(found[1 + S :])

    return Loop(prefix, step_forward, step_backward)


def _own_results(loop, arguments, wrong=()):
    """The results of a loop over the learner's steps; None if that fails."""
    try:
        return (loop.forward(*arguments.values(), wrong=wrong)[0],)
    except Exception:
        return None


def _try_other_inputs(name, function, learner):
    """Add remarks about inputs for which a right function fails."""
    if "A" in make_arguments(name, SIZES, 0, learner.dtype):
        arguments = make_arguments(name, OTHER_GRID, 0, learner.dtype)
        try:
            results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), {})
            works = same(results, forward(name, exact(arguments)))
        except Exception:
            works = False
        if not works:
            function.remark("it works for square grids only")
    if name in ("temporal_softmax_loss", "dot_product_attention"):
        arguments = make_arguments(name, SIZES, 0, learner.dtype)
        if name == "temporal_softmax_loss":
            arguments["x"] += 1000
        else:
            arguments["A"] *= 1e5
        if not _is_finite(name, function, arguments, {}):
            function.remark("it overflows when the scores are large: subtract the largest one before exp")
        elif name == "temporal_softmax_loss":
            arguments["x"] *= (1.0 + torch.arange(arguments["x"].shape[2])).to(learner.dtype)
            if not _is_finite(name, function, arguments, {}):
                function.remark("it takes the logarithm of a probability that is 0: use log_softmax, or logsumexp")
        if name == "temporal_softmax_loss":
            arguments = make_arguments(name, SIZES, 0, learner.dtype)
            arguments["y"] = torch.full_like(arguments["y"], 2)
            if not _is_finite(name, function, arguments, {"ignore_index": 2}):
                function.remark("it is not finite when all words are ignored; it should be 0")
    elif name not in SEQUENCES and name.endswith("forward"):
        arguments = make_arguments(name, SIZES, 0, learner.dtype)
        arguments[next(iter(arguments))] *= 1e4
        if not _is_finite(name, function, arguments, {}):
            function.remark("it is not finite for large inputs: use a tanh and a sigmoid that don't overflow")


def _is_finite(name, function, arguments, keywords):
    try:
        results, _ = call_forward(function, arguments, FORWARDS[name][1].split(), keywords)
    except Exception:
        return False
    return all(bool(result.isfinite().all()) for result in results)


# --------------------------------------------------------------------------------------- backward


class Trial(NamedTuple):
    """A backward pass to be judged: its arguments, upstream gradients and names, and the learner's two functions."""

    name: str
    forward_name: str
    arguments: dict[str, Tensor]
    upstream: tuple[Tensor, ...]
    names: list[str]
    forward: Function
    backward: Function

    def wanted(self, wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
        """The right gradients, or those of known mistakes."""
        return backward(self.forward_name, exact(self.arguments), tuple(d.double() for d in self.upstream), wrong)

    def run(self, cache: tuple) -> list[Tensor]:
        """The learner's gradients."""
        if not self.backward.settled:
            self.backward.kind = self.forward.kind  # as the cache
        return as_list(self.backward(*self.upstream, cache=cache), self.names)


def _make_trial(name, learner, sizes):
    forward_name = name.replace("backward", "forward")
    arguments = make_arguments(forward_name, sizes, 0, learner.dtype)
    generator = torch.Generator().manual_seed(100)
    shapes = [result.shape for result in forward(forward_name, exact(arguments))]
    upstream = tuple(torch.randn(s, dtype=torch.float64, generator=generator).to(learner.dtype) for s in shapes)
    names = ["d" + argument for argument in arguments]
    functions = learner.functions[forward_name], learner.functions[name]
    return Trial(name, forward_name, arguments, upstream, names, *functions)


def judge_backward(name: str, learner: Learner) -> Judgement:
    """Judge the backward pass of a step or a sequence, with the cache of the learner's own forward."""
    forward_name = name.replace("backward", "forward")
    forward_is_right = learner.is_right(forward_name)
    for label, sizes in {"": SIZES, **(SPECIAL_SIZES if forward_is_right else {})}.items():
        trial = _make_trial(name, learner, sizes)
        _, cache = call_forward(trial.forward, trial.arguments, FORWARDS[forward_name][1].split(), {})
        if not cache and trial.backward.takes("cache"):
            shown = ", ".join(FORWARDS[forward_name][1].split())
            raise Mistake(f"it needs a cache, and your {learner.label(forward_name)} returns none after {shown}")
        if not forward_is_right:
            return _judge_behind_a_wrong_forward(trial, learner, cache)
        try:
            found = trial.run(cache)
            compare(trial.names, found, trial.wanted(), lambda: _explain_backward(trial, learner, cache, found))  # noqa: B023
        except Waits as reason:
            return Judgement("waits", str(reason))
        except (NotImplementedError, Unusable):
            raise
        except Mistake as mistake:
            if not label:
                raise
            about = _about_sizes(str(mistake).split(":")[0])
            raise Mistake(f"with {label}, {str(mistake).split(':')[0]}{about}") from None
        except Exception as error:
            if label:
                raise Mistake(f"with {label}, it raises {type(error).__name__}: {_first_line(error)}") from error
            raise
        if not label:
            _try_twice(trial, cache, found)
    return Judgement("right")


def _try_twice(trial, cache, found):
    try:
        again = trial.run(cache)
    except Exception:  # autograd has freed its graph, or a list in the cache is empty now
        return
    if not all(torch.equal(a, b) for a, b in zip(found, again)):
        trial.backward.remark("a second call with the same cache gives another result: it changes its cache in place")


def _explain_backward(trial, learner, cache, found):
    """The end of a sentence about a wrong backward of a right forward. Raises: Waits for the root of the mistake."""
    if trial.name not in SEQUENCES:
        known = diagnose(found, trial.wanted, pairs=False)
        if not known:
            _wait_for_what_it_calls(trial.name, learner)
        return known or diagnose(found, trial.wanted) or hint(trial.name, trial.names, found, trial.wanted())
    step = _roots_of(trial.name)[-1]
    roots = [root for root in _roots_of(trial.name) if learner.outcomes.get(root) in NOT_RIGHT and learner.has(root)]
    if step in roots:
        known = _compare_with_own_steps(trial, learner, found)
        if known:
            return known
    known = diagnose(found, trial.wanted, LOOP, pairs=False) or diagnose(found, trial.wanted, pairs=False)
    if known:
        return known
    if roots:
        raise Waits(f"it can't be judged before your {learner.label(roots[0])} is right: correct that first")
    known = diagnose(found, trial.wanted, LOOP | {"query", "dA weights", "dA scores", "dA start", "scale forgotten"})
    if known:
        return known
    where = _what_the_loop_gets_wrong(trial, found)
    if learner.is_right(step):
        return f": your {learner.label(step)} is right, the loop over time is not: {where}"
    return f": none of the known mistakes explains it; {where}"


def _what_the_loop_gets_wrong(trial, found):
    wanted = trial.wanted()
    pairs = {key: (a, b) for key, a, b in zip(trial.names, found, wanted)}
    wrong = [key for key, (a, b) in pairs.items() if not close(a, b)]
    dx, right_dx = pairs["dx"]
    T = right_dx.shape[1]
    if dx.shape == right_dx.shape:
        bad = [t for t in range(T) if not close(dx[:, t], right_dx[:, t])]
        if not bad:
            return f"dx is right at every step, so look at the lines of {', '.join(wrong)}"
        if T - 1 not in bad:
            return "the last step is right, so look at what is carried to the step before"
    return "the last step, with which the loop begins, is wrong already: look at what it is given"


def _compare_with_own_steps(trial, learner, found):
    """What the right loop over the learner's own steps says: the end of a sentence, or "". Raises: Waits."""
    step = _roots_of(trial.name)[-1]
    if PLAIN_CELLS[trial.name.split("_")[0]].inputs or not learner.has(step.replace("backward", "forward")):
        return ""
    loop = _own_loop(trial.name, learner)
    try:
        _, caches = loop.forward(*trial.arguments.values())

        def own(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
            return loop.backward(trial.upstream[0], caches, trial.arguments, wrong)

        if same(found, own()):
            raise Waits(f"it is right once your {learner.label(step)} is: correct that first")
        return diagnose(found, own, LOOP, pairs=False)
    except Waits:
        raise
    except Exception:  # the learner's steps can't be called one by one
        return ""


def _judge_behind_a_wrong_forward(trial: Trial, learner: Learner, cache: Any) -> Judgement:
    """Judge a backward whose own forward is wrong, so that its cache may have wrong values."""
    first = learner.label(_root_of(trial.forward_name, learner))
    once = Judgement("waits", f"it is right once your {first} is: correct that first")
    unknown = Judgement("waits", f"it can't be judged before your {first} is right: correct that first")
    wanted = trial.wanted()
    for corrected, certain in _corrected_caches(trial, learner, cache):
        try:
            found = trial.run(corrected)
        except NotImplementedError:
            raise
        except Exception:  # a corrected cache need not suit the function
            continue
        if same(found, wanted):
            return once
        if certain:
            known = diagnose(found, trial.wanted, pairs=False)
            if known:
                compare(trial.names, found, wanted, lambda: known)  # noqa: B023
    try:
        found = trial.run(cache)
    except NotImplementedError:
        raise
    except Exception:  # the cache is not what it expects
        return unknown
    if trial.name in SEQUENCES:
        try:
            known = _compare_with_own_steps(trial, learner, found)
        except Waits:
            return once
        if known:
            compare(trial.names, found, wanted, lambda: known)
    if trial.name not in SEQUENCES and same(found, numeric_gradients(trial)):
        return Judgement("waits", f"it is the gradient of your own {first}, which is wrong: correct that first")
    return unknown


def _root_of(name, learner):
    """The first function to correct so that this forward can be right."""
    if name not in SEQUENCES:
        return name
    wrong = [root for root in _roots_of(name) if learner.outcomes.get(root) in NOT_RIGHT and learner.has(root)]
    return wrong[0] if wrong else name


def _corrected_caches(trial, learner, cache):
    """Caches with the values that a right forward would have put into them, and whether that is certain.

    The cache as it is comes first: a mistake may not have reached it.
    """
    yield cache, False
    if trial.name not in SEQUENCES:
        yield from _corrected_step_caches(trial.forward_name, trial.arguments, trial.forward, cache)
        return
    prefix = trial.name.split("_")[0]
    step = f"{prefix}_step_forward"
    if learner.has(step):
        try:
            _, caches = _own_loop(trial.name, learner).forward(*trial.arguments.values())
        except Exception:
            return
        yield _with_steps(cache, [own[0] for own, *_ in caches if own]), learner.is_right(step)


def _with_steps(cache, steps):
    """A cache in which a list with one part for each time step has these parts."""
    if isinstance(cache, list | tuple) and not hasattr(cache, "_fields"):
        if len(cache) == len(steps) and all(type(a) is type(b) for a, b in zip(cache, steps)):
            return type(cache)(steps)
        return type(cache)(_with_steps(part, steps) for part in cache)
    if isinstance(cache, dict):
        if list(cache) == list(range(len(steps))):
            return dict(enumerate(steps))
        return {key: _with_steps(part, steps) for key, part in cache.items()}
    return cache


def _corrected_step_caches(name, arguments, function, cache):
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


def numeric_gradients(trial: Trial) -> tuple[Tensor, ...]:
    """The gradients of the learner's own forward, by central differences."""
    gradients = []
    names = FORWARDS[trial.forward_name][1].split()
    for key, value in exact(trial.arguments).items():

        def loss(changed: Tensor, key: str = key) -> Tensor:
            changed = changed.to(trial.arguments[key].dtype)
            results, _ = call_forward(trial.forward, trial.arguments | {key: changed}, names, {})
            parts: Sequence[Tensor] = [(r.double() * d).sum() for r, d in zip(results, trial.upstream)]
            return torch.stack(list(parts)).sum()

        gradients.append(compute_numeric_gradient(loss, value, h=1e-5))
    return tuple(gradients)


def check_autograd(function: Function) -> None:
    """Raises: Mistake if autograd does not find the right gradients of a forward in torch."""
    name = function.name
    arguments = make_arguments(name, SIZES, 0, torch.float32)
    leaves = {key: value.clone().requires_grad_() for key, value in arguments.items()}
    result = function.code(*leaves.values())
    h = result[0] if isinstance(result, tuple | list) else result
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    if not h.requires_grad:
        raise Mistake(f"autograd can't find gradients through it: write {name.replace('forward', 'backward')} too")
    found = torch.autograd.grad(h, list(leaves.values()), upstream, allow_unused=True)
    wanted = backward(name, exact(arguments), (upstream.double(),))
    for key, gradient, right in zip(leaves, found, wanted):
        if gradient is None or not close(gradient, right):
            raise Mistake(f"with autograd, its gradient d{key} is wrong: is a tensor detached or copied?")
