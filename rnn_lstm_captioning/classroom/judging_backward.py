"""Judge a backward, of a step or a sequence: with the cache of its own forward, or with that of a right one."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .caches import corrected_step_caches, with_steps
from .calling import Function, Mistake, as_list, call_forward
from .comparing import (
    SIZES,
    SPECIAL_SIZES,
    UNKNOWN,
    backward_mistakes,
    close,
    compare,
    diagnose,
    exact,
    hint,
    make_arguments,
    same,
)
from .gradients import compute_numeric_gradient
from .mistakes import LOOP, PAIRED
from .plain_cells import FORWARDS, PLAIN_CELLS, SEQUENCES
from .plain_passes import backward, forward
from .roots import (
    Judgement,
    Learner,
    Waits,
    at_sizes,
    judged_after,
    own_loop,
    right_but_for,
    roots_of,
    wait_for_what_it_calls,
    wrong_roots_of,
)


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
            with at_sizes(label):
                found = trial.run(cache)
                explain = partial(_explain_backward, trial, learner, cache, found)
                compare(trial.names, found, trial.wanted(), explain if not label else lambda: "")
        except Waits as reason:
            return Judgement("waits", str(reason))
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
    in_place = [remark for remark in trial.forward.remarks if "in place" in remark]
    if in_place:  # then the cache may hold other values than those of the step
        return f": your {learner.label(trial.forward_name)} may be the reason: {in_place[0]}"
    if trial.name not in SEQUENCES:
        names = backward_mistakes(trial.forward_name)
        known = diagnose(found, trial.wanted, names, ())
        if not known:
            wait_for_what_it_calls(trial.name, learner)
        return known or diagnose(found, trial.wanted, names) or hint(trial.name, trial.names, found, trial.wanted())
    step = roots_of(trial.name)[-1]
    roots = wrong_roots_of(trial.name, learner)
    if step in roots:
        known = _compare_with_own_steps(trial, learner, found)
        if known:
            return known
    names = backward_mistakes(trial.forward_name)
    known = diagnose(found, trial.wanted, LOOP & names, ()) or diagnose(found, trial.wanted, names, ())
    if known:
        return known
    if roots:
        raise Waits(judged_after(learner.label(roots[0])))
    known = diagnose(found, trial.wanted, (LOOP | PAIRED) & names, PAIRED)
    if known:
        return known
    for corrected, _ in _corrected_caches(trial, learner, cache):
        if same(_or_nothing(trial, corrected), trial.wanted()):
            forward_label = learner.label(trial.forward_name)
            return f": with a right cache it is right: does your {forward_label} keep arrays that change later?"
    where = _what_the_loop_gets_wrong(trial, found)
    if learner.is_right(step):
        return f": your {learner.label(step)} is right, the loop over time is not: {where}"
    return f"{UNKNOWN}; {where}"


def _or_nothing(trial, cache):
    """The gradients with another cache; nothing if the function can't use it."""
    try:
        return trial.run(cache)
    except Exception:
        return ()


def _what_the_loop_gets_wrong(trial, found):
    wanted = trial.wanted()
    pairs = {key: (a, b) for key, a, b in zip(trial.names, found, wanted)}
    wrong = [key for key, (a, b) in pairs.items() if not close(a, b)]
    dx, right_dx = pairs["dx"]
    if wrong == ["dx"]:
        return "only dx is wrong, so look at how it is stored"
    T = right_dx.shape[1]
    if dx.shape == right_dx.shape:
        bad = [t for t in range(T) if not close(dx[:, t], right_dx[:, t])]
        if not bad:
            return f"dx is right at every step, so look at what you return as {', '.join(wrong)}"
        if T - 1 not in bad:
            return "the last step is right, so look at what is carried to the step before"
    return "the last step, with which the loop begins, is wrong already: look at what it is given"


def _compare_with_own_steps(trial, learner, found):
    """What the right loop over the learner's own steps says: the end of a sentence, or "". Raises: Waits."""
    step = roots_of(trial.name)[-1]
    if PLAIN_CELLS[trial.name.split("_")[0]].inputs or not learner.has(step.replace("backward", "forward")):
        return ""
    loop = own_loop(trial.name, learner)
    try:
        _, caches = loop.forward(*trial.arguments.values())

        def own(wrong: Collection[str] = ()) -> tuple[Tensor, ...]:
            return loop.backward(trial.upstream[0], caches, trial.arguments, wrong)

        if same(found, own()):
            raise Waits(right_but_for(learner.label(step)))
        return diagnose(found, own, LOOP, pairs=())
    except Waits:
        raise
    except Exception:  # the learner's steps can't be called one by one
        return ""


def _judge_behind_a_wrong_forward(trial: Trial, learner: Learner, cache: Any) -> Judgement:
    """Judge a backward whose own forward is wrong, so that its cache may have wrong values."""
    roots = wrong_roots_of(trial.forward_name, learner) if trial.name in SEQUENCES else []
    first = learner.label((roots or [trial.forward_name])[0])  # what to correct, so that its forward can be right
    once = Judgement("waits", right_but_for(first))
    unknown = Judgement("waits", judged_after(first))
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
            known = diagnose(found, trial.wanted, backward_mistakes(trial.forward_name), ())
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


def _corrected_caches(trial, learner, cache):
    """Caches with the values that a right forward would have put into them, and whether that is certain.

    The cache as it is comes first: a mistake may not have reached it.
    """
    yield cache, False
    if trial.name not in SEQUENCES:
        yield from corrected_step_caches(trial.forward_name, trial.arguments, trial.forward, cache)
        return
    prefix = trial.name.split("_")[0]
    step = f"{prefix}_step_forward"
    if learner.has(step):
        try:
            _, caches = own_loop(trial.name, learner).forward(*trial.arguments.values())
        except Exception:
            return
        yield with_steps(cache, [own[0] for own, *_ in caches if own]), learner.is_right(step)


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
