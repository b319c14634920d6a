"""Check a learner's own cells: python -m rnn_lstm_captioning.check FILE

Every function that FILE has under one of the names below is called, in numpy or torch as it is written,
and compared with the right values and gradients; a known mistake, or two, are called by their names. The learner's
code runs in a process of its own, with a time limit.
"""

import copy
import importlib.machinery
import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
import traceback
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from .command import ArgumentParser, positive, run_command
from .errors import InputError
from .gradients import compute_numeric_gradient
from .mistakes import MISTAKES, RARE, backward, forward

# name -> its arguments with their shapes, its results; forward before backward
CELL = {"rnn": "Wx D,H  Wh H,H  b H", "lstm": "Wx D,4H  Wh H,4H  b 4H"}
CELL["attention"] = "Wx D,4H  Wh H,4H  Wattn H,4H  b 4H"
FORWARDS = {
    "rnn_step_forward": (f"x N,D  prev_h N,H  {CELL['rnn']}", "next_h"),
    "rnn_forward": (f"x N,T,D  h0 N,H  {CELL['rnn']}", "h"),
    "lstm_step_forward": (f"x N,D  prev_h N,H  prev_c N,H  {CELL['lstm']}", "next_h next_c"),
    "lstm_forward": (f"x N,T,D  h0 N,H  {CELL['lstm']}", "h"),
    "dot_product_attention": ("prev_h N,H  A N,H,grid_h,grid_w", "attn attn_weights"),
    "attention_step_forward": (f"x N,D  prev_h N,H  prev_c N,H  attn N,H  {CELL['attention']}", "next_h next_c"),
    "attention_forward": (f"x N,T,D  A N,H,grid_h,grid_w  {CELL['attention']}", "h"),
    "temporal_softmax_loss": ("x N,T,V  y N,T", "loss"),
}
ORDER = []
for _name in FORWARDS:
    ORDER += [_name, _name.replace("forward", "backward")] if "forward" in _name else [_name]
SIZES = [dict(N=3, T=4, D=5, H=7, grid_h=2, grid_w=4, V=9), dict(N=1, T=2, D=3, H=2, grid_h=3, grid_w=1, V=6)]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}


class Mistake(Exception):
    """What is wrong with a learner's function, in a sentence."""


class Unusable(Mistake):
    """A mistake with which nothing can be made of a function's results."""


def get_args_parser():
    parser = ArgumentParser(prog="python -m rnn_lstm_captioning.check", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="a Python file with any of the functions")
    parser.add_argument("--new", action="store_true", help="write FILE, with the functions to fill in")
    parser.add_argument(
        "--need", nargs="+", choices=ORDER, default=[], metavar="NAME", help="exit code 1 without these"
    )
    parser.add_argument(
        "--timeout", type=positive(float), default=60, metavar="S", help="seconds until a loop has no end (%(default)s)"
    )
    return parser


def main(arguments=None):
    """Exit code 0: all right; 1: a mistake was found; 2: the file can't be used."""
    args = get_args_parser().parse_args(arguments)
    if args.new:
        return write_starter(args.file)
    if args.file.is_dir():
        raise InputError(f"{args.file} is a folder; name a Python file")
    if not args.file.is_file():
        raise InputError(f"{args.file}: there is no such file; --new {args.file} writes one to start from")
    counts, missing = {"right": 0, "wrong": 0, "unchecked": 0, "todo": 0}, set(args.need)
    for name, outcome, message in check_in_own_process(args.file.resolve(), args.timeout):
        if name is None:
            raise InputError(f"{args.file} {message}")
        counts[outcome] += 1
        missing -= {name} if outcome != "todo" else set()
        mark = {"right": "right", "wrong": "WRONG", "unchecked": "not checked", "todo": "not written yet"}[outcome]
        print(f"{name:<26} {mark}{': ' if message else ''}{message}")
    if counts["right"] + counts["wrong"] + counts["unchecked"] == 0:
        raise InputError(f"{args.file} has none of the functions filled in: {', '.join(ORDER)}")
    rest = {"unchecked": "not checked", "todo": "not written yet"}
    rest = [f"{counts[outcome]} {text}" for outcome, text in rest.items() if counts[outcome]]
    rest += [f"needed and not written: {', '.join(name for name in args.need if name in missing)}"] if missing else []
    print(", ".join([f"{counts['right']} right, {counts['wrong']} wrong", *rest]))
    sys.exit(int(bool(counts["wrong"] + counts["unchecked"] or missing)))


def check_in_own_process(file, timeout):
    """Yields (function, outcome, message); the function is None if the file can't be used."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    code += "from rnn_lstm_captioning.check import work; work(*sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        shown, begun = 0, "the import"
        while begun:  # once, and again after a function that did not come to an end
            try:
                ended = subprocess.run([sys.executable, "-c", code, str(file), str(report)], timeout=timeout).returncode
                why = f"it ended the whole process (exit code {ended})"
            except subprocess.TimeoutExpired:
                why = f"it was not done after {timeout:g} seconds: is there a loop without an end?"
            lines = read_report(report)
            begun = lines[-1][0] if lines[-1][1] == "begun" else None
            if begun == "the import":
                return (yield None, "wrong", f"can't be imported: {why}")
            if begun:
                lines.append([begun, "failed", why])
                report.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            results = [line for line in lines if line[1] != "begun"]
            for name, outcome, message in results[shown:]:
                yield name, "wrong" if outcome == "failed" else outcome, message
            shown = len(results)


def read_report(report):
    return [json.loads(line) for line in Path(report).read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------- in the own process


def work(file, report):
    """Check all functions of a file that are not in the report yet, and add a line of JSON to it before and after each:
    function, outcome, message."""
    done = {name: outcome for name, outcome, _ in read_report(report)}
    with open(report, "a", encoding="utf-8") as lines:

        def say(name, outcome, message=""):
            done[name] = outcome
            lines.write(json.dumps([name, outcome, message]) + "\n")
            lines.flush()

        say("the import", "begun")
        try:
            module = load(file)
        except Exception as error:
            return say(None, "wrong", f"can't be imported: {describe(error, file)}")
        learner = {name: getattr(module, name) for name in ORDER if callable(getattr(module, name, None))}
        if not learner:
            return say(None, "wrong", f"has none of the functions: {', '.join(ORDER)}")
        for name, function in learner.items():
            if name in done:
                continue
            say(name, "begun")
            try:
                outcome, message = check(name, function, learner, done)
            except Mistake as mistake:
                outcome, message = "failed" if isinstance(mistake, Unusable) else "wrong", str(mistake)
            except NotImplementedError:
                outcome, message = "todo", ""
            except Exception as error:
                outcome, message = "failed", f"it raised {describe(error, file)}"
            say(name, outcome, message)


def load(file):
    sys.path.insert(0, str(Path(file).parent))
    loader = importlib.machinery.SourceFileLoader("learners_cells", str(file))  # whatever its name ends in
    spec = importlib.util.spec_from_loader("learners_cells", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["learners_cells"] = module
    spec.loader.exec_module(module)
    return module


def describe(error, file):
    """An exception, with the line of the learner's file where it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines = [error.lineno]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())[:300]}"


def check(name, function, learner, done):
    """Returns: "right" or "unchecked", and a message. Raises: Mistake; whatever the learner's code raises.

    Args: learner, all functions of the file; done, the outcomes of those that were checked before.
    """
    step = name.replace("_forward", "_step_forward").replace("_backward", "_step_backward")
    first = step if step != name and done.get(step) in ("wrong", "failed") else None
    forward_name = name.replace("backward", "forward")
    if forward_name != name:
        code = getattr(function, "__code__", None)
        if code and "NotImplementedError" in code.co_names:  # as --new wrote it
            raise NotImplementedError
        reasons = {None: "is not in the file", "todo": "is not written yet", "failed": "fails"}
        if done.get(forward_name) in reasons:
            reason = reasons[done.get(forward_name)]
            return "unchecked", f"it takes the cache of your own {forward_name}, which {reason}"
    dtypes = [torch.float64, torch.float32]
    for dtype in dtypes:
        try:
            for seed, sizes in enumerate(SIZES):
                if forward_name != name:
                    pair = function, learner[forward_name]
                    check_backward(name, *pair, done[forward_name] == "right", sizes, seed, dtype, first)
                else:
                    check_forward(name, function, sizes, seed, dtype, first)
            return "right", check_large_scores(name, function, dtype)
        except RuntimeError as error:  # a solution that makes float32 tensors itself wants float32
            if dtype == dtypes[-1] or not any(word in str(error).lower() for word in ("dtype", "double", "float")):
                raise


# ---------------------------------------------------------------------------------- one function


def make_arguments(name, sizes, seed, dtype):
    """Random arguments: a dict of tensors, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {}
    for argument, shape in (part.split() for part in FORWARDS[name][0].split("  ")):
        shape = [4 * sizes["H"] if letter == "4H" else sizes[letter] for letter in shape.split(",")]
        if argument == "y":
            arguments["y"] = torch.randint(0, sizes["V"], shape, generator=generator)
            arguments["y"][:, -1] = 0  # <NULL>
            arguments["y"][:, 0] = 1
        else:
            arguments[argument] = (0.7 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)
    return arguments


def check_forward(name, function, sizes, seed, dtype, first):
    arguments = make_arguments(name, sizes, seed, dtype)
    names = FORWARDS[name][1].split()
    calls = [{"ignore_index": 0}, {}] if name == "temporal_softmax_loss" else [{}]
    for keywords in calls:

        def compute(wrong=(), keywords=keywords):
            return forward(name, exact(arguments) | keywords, wrong)

        results, rest = call_forward(function, arguments, names, keywords)
        compare(names, results, compute(), compute, first)
        if rest is not None and name == "temporal_softmax_loss":  # CS231n's returns the gradient too

            def gradient(wrong=(), keywords=keywords):
                x = exact(arguments)["x"].clone().requires_grad_()
                return torch.autograd.grad(forward(name, exact(arguments) | {"x": x} | keywords, wrong), x)

            compare(["dx"], as_list(rest, ["dx"]), gradient(), gradient, first)


def check_large_scores(name, function, dtype):
    """A remark on a function whose softmax overflows where it need not, or nothing."""
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


def check_backward(name, function, forward_function, forward_is_right, sizes, seed, dtype, first):
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
    else:  # then its own forward is what it is the gradient of
        numeric = numeric_gradients(forward_function, forward_name, arguments, wanted)
        compare(names, found, numeric, of=" from the gradient of your own forward")
    for gradient, before in zip(given, upstream):
        if not torch.equal(from_kind(gradient), before):
            raise Mistake("it changes the gradient that it is given, in place")
    try:
        again = as_list(function(*given, cache), names)
    except RuntimeError as error:
        if "second time" in str(error):  # autograd has freed its graph
            return
        raise
    if any(not torch.equal(a, b) for a, b in zip(found, again)):
        raise Mistake("a second call with the same cache gives something else: it changes its cache in place")


def numeric_gradients(function, name, arguments, upstream):
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


def call_forward(function, arguments, names, keywords):
    """The results of a learner's forward, as tensors, and its cache or None."""
    kind, loss = kind_of(function), "y" in arguments
    given = [to_kind(value, kind) for value in arguments.values()]
    if loss and "mask" in inspect.signature(function).parameters:  # CS231n's marks the words that count
        counted = arguments["y"] != keywords["ignore_index"] if keywords else torch.ones_like(arguments["y"]) == 1
        keywords = {"mask": to_kind(counted, kind)}
    try:
        returned = function(*given, **keywords)
    except TypeError:
        if not loss or keywords:
            raise
        returned = function(*given, ignore_index=-100)  # what F.cross_entropy takes for "none"
    for key, value, now in zip(arguments, arguments.values(), given):
        if not torch.equal(from_kind(now), value):
            raise Mistake(f"it changes its argument {key} in place")
    cache = None
    if isinstance(returned, tuple | list) and len(returned) == len(names) + 1:
        *returned, cache = returned
    return as_list(returned, names, "" if loss or "attn_weights" in names else ", cache"), cache


def as_list(returned, names, more=""):
    """What a function returned, as one tensor for each name; ``more``, for the message, is what else it may return."""
    if not isinstance(returned, tuple | list):
        returned = [returned]
    wanted = ", ".join(names) + more
    if len(returned) != len(names):
        raise Unusable(f"it returns {len(returned)} values, wanted {wanted}")
    for name, value in zip(names, returned):
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic | float | int):
            raise Unusable(f"its result {name} is a {type(value).__name__}; wanted {wanted}")
    return [from_kind(value) for value in returned]


def compare(names, found, wanted, compute=None, first=None, of=""):
    """Raises Mistake if the results are not those that are wanted; it names the known mistake with which ``compute``
    gives what was found, else the learner's function that is to be mended ``first``."""
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
        known = diagnose(found, wanted, compute, first) or hint(names, found, wanted)
        raise Mistake(f"{bad[0]} {off}{of} (the right values reach {b.abs().max():.2g}){others}{known}")


def diagnose(found, wanted, compute, first):
    """ ": " and the mistake, or two, with which the plain cells give the same; or what to mend first; or nothing."""
    if compute is None:
        return ""

    def explains(wrong):
        results = compute(wrong)
        return same(found, results) and not same(results, wanted)

    for name, sentence in MISTAKES.items():
        if explains((name,)):
            return f": {sentence}"
    if first:
        return f": mend your {first} first"
    possible = [name for name in MISTAKES if name not in RARE and not same(compute((name,)), wanted)]
    for pair in combinations(possible, 2):
        if explains(pair):
            return f": two mistakes: {MISTAKES[pair[0]]}; and {MISTAKES[pair[1]]}"
    return ""


def same(some, others):
    return all(close(a, b) for a, b in zip(some, others))


def hint(names, found, wanted):
    """Where to look for a mistake, or several, that have no name: which quarters of db are off is closest to it."""
    pairs = {name: (a, b) for name, a, b in zip(names, found, wanted)}
    text = ": no known mistake explains it, nor any two"
    if "db" not in pairs:
        return text
    if close(*pairs["dx"]):
        return text + "; da is right, look at what is made of it"
    if pairs["dWh"][1].shape[1] != 4 * pairs["dWh"][1].shape[0]:
        return text
    quarters = zip("ifog", pairs["db"][0].chunk(4), pairs["db"][1].chunk(4))
    wrong = [gate for gate, a, b in quarters if not close(a, b)]
    return text + (f"; look at da of {', '.join(wrong)}" if wrong else "; da is right, look at what is made of it")


def close(a, b):
    if a.shape != b.shape:
        return False
    tolerance = TOLERANCE[torch.float64 if a.dtype == torch.float64 else torch.float32]
    return bool(((a.double() - b.double()).abs() <= tolerance * (1 + b.double().abs().max())).all())


def exact(arguments):
    return {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}


# ----------------------------------------------------------------------------- numpy or torch


def kind_of(function):
    """ "torch" or "numpy": which of the two a function and its helpers use; else which its file imports."""
    module = sys.modules.get(function.__module__)
    seen, waiting = set(), [function]
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


def to_kind(tensor, kind):
    return tensor.clone() if kind == "torch" else tensor.numpy().copy()


def from_kind(value):
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    return copy.deepcopy(tensor) if tensor.is_floating_point() or tensor.dtype == torch.int64 else tensor.double()


# -------------------------------------------------------------------------------- the starter file

STARTER = '''"""My own cells. Fill in any of the functions, in numpy or torch, and run
python -m rnn_lstm_captioning.check {name}

Shapes: N batch, T time steps, D word-vector size, H hidden size, V vocabulary. Weights are (in, out): x @ Wx.
The gates lie side by side in the order i, f, o, g. cache is whatever your backward needs of the forward.
"""

import numpy as np  # use either
import torch

'''


def write_starter(path):
    if path.exists():
        raise InputError(f"{path} is there already; --new does not overwrite it")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    text = STARTER.format(name=path)
    for name in ORDER:
        arguments, results = FORWARDS[name.replace("backward", "forward")]
        pairs = [part.split() for part in arguments.split("  ")]
        shapes = ", ".join(f"{argument} ({shape.replace(',', ', ')})" for argument, shape in pairs)
        if "backward" in name:
            taken = [f"d{result}" for result in results.split()] + ["cache"]
            returned = ", ".join(f"d{argument}" for argument, _ in pairs)
            doc = f"Returns: {returned}, each of the shape of what it is the gradient of."
        else:
            taken = [argument for argument, _ in pairs] + ["ignore_index=None"] * (name == "temporal_softmax_loss")
            cache = ", cache" if "forward" in name else ""
            doc = f"{shapes}. Returns: {', '.join(results.split())}{cache}."
        text += f'\ndef {name}({", ".join(taken)}):\n    """{doc}"""\n    raise NotImplementedError\n\n'
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(f"wrote {path}; fill in what you like, and run python -m rnn_lstm_captioning.check {path}")


if __name__ == "__main__":
    run_command(main)
