"""Attacks by somebody who has not written the code, and what must come of them.

    OMP_NUM_THREADS=1 python -m tests.endurance.stranger --attempts 20000 --seed 1
    OMP_NUM_THREADS=1 python -m tests.endurance.stranger --attempts 200 --kind "a file that is none"

An attack belongs to a kind, and every kind has its oracle: the plain formula in float64, "refused in one sentence", a
checksum, or what a program prints and leaves behind. The programs run in forked processes, so torch is loaded once.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import rnn_lstm_captioning as project
from rnn_lstm_captioning.commands import build, check, common, test, train
from rnn_lstm_captioning.data.scenes import make_scenes

ROOT = Path(__file__).parents[2]
SMALL = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 8 --wordvec-dim 4 --batch-size 10 --quiet"
SMALL = [*SMALL.split(), "--device", "cpu", "--epochs", "1"]
MODULES = {cell.prefix: cell for cell in project.cells.CELLS.values()}
PREFIXES = list(MODULES)
SECONDS, GIGABYTES = 60, 2.5  # that a program may take
KINDS = {}  # name -> (function, how often it is chosen)


class Wrong(Exception):
    """An attack had a wrong outcome."""


def kind(name, often=100):
    def register(function):
        KINDS[name] = function, often
        return function

    return register


def refused(call, *arguments, allow=None, **keywords):
    """The call must raise an error of one line; or its result must please ``allow``."""
    try:
        result = call(*arguments, **keywords)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        text = str(error)
        if "\n" in text or not text or len(text) > 600:
            raise Wrong(f"an error that is not one sentence: {type(error).__name__}: {text[:200]!r}") from error
        return
    if allow is None or not allow(result):
        raise Wrong(f"accepted: {str(result)[:100]}")


# ------------------------------------------------------------------------------------ programs


def program(function, arguments, folder, kill_after=None, name="program.py"):
    """Run a command in a forked process; perhaps kill it after some seconds.

    Returns: exit code, standard output, standard error.
    """
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = (open(k, "w", encoding="utf-8", closefd=False) for k in (1, 2))  # noqa: SIM115
            sys.argv = [name, *arguments]
            common.run_command(lambda: function(arguments))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    start, status, used = time.monotonic(), None, None
    while status is None:
        done, state, used = os.wait4(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(state)
        elif kill_after is not None and time.monotonic() - start > kill_after:
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            kill_after = None
        elif time.monotonic() - start > SECONDS:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Wrong(f"it hangs: {arguments}")
        else:
            time.sleep(0.002)
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode(errors="surrogateescape"))
        file.close()
    if used.ru_maxrss > GIGABYTES * 1e6:
        raise Wrong(f"it takes {used.ru_maxrss / 1e6:.1f} GB: {arguments}")
    return status, *texts


def well_behaved(result, codes=(0, 1, 2)):
    """No traceback, one line of error, a usual exit code, and nothing that controls a terminal."""
    code, out, err = result
    if "Traceback" in err or "Exception ignored" in err:
        raise Wrong(f"a traceback: {err.strip().splitlines()[-1][:200]}")
    if code not in codes:
        raise Wrong(f"exit code {code}: {err[-200:]!r}")
    if code and len([line for line in err.splitlines() if line.startswith("program.py: ")]) != 1:
        raise Wrong(f"not one line: {err[-300:]!r}")
    err = err.replace("\r", "")  # a progress bar
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", out + err):
        raise Wrong(f"it controls the terminal: {(out + err)[-200:]!r}")
    return code


class World:
    """Valid files, to begin with. Attributes: folder, where an attack may do what it likes; the valid files."""

    def __init__(self, base):
        self.base, self.folder = base, base / "attack"
        torch.save(make_scenes(num_train=12, num_val=3), base / "scenes.pt")
        self.scenes = (base / "scenes.pt").read_bytes()
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(["--data", str(base / "scenes.pt"), "--out", str(base / "cv"), *SMALL], "lstm")
            exported = ["--checkpoint", str(base / "cv/lstm_best.pt"), "--export", str(base / "model.safetensors")]
            test.main(exported, "lstm")
        self.checkpoint = (base / "cv/lstm_last.pt").read_bytes()
        Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(base / "photo.jpg")
        self.captioner = project.load_captioner(base / "cv/lstm_best.pt", "cpu")
        (base / "mine.py").write_text((ROOT / "rnn_lstm_captioning/classroom/solution.py").read_text())

    def fresh(self):
        """An empty folder for an attack."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.folder


# ------------------------------------------------------------------------------- the numbers


def plain(prefix, x, image, *weights):
    """The hidden states, from the equations, in float64."""
    x, image, *weights = (tensor.detach().double().clone().requires_grad_() for tensor in (x, image, *weights))
    N, T, _ = x.shape
    if prefix == "attention":
        h = c = image.mean((2, 3))
        Wx, Wh, Wattn, b = weights
    else:
        h, c = image, torch.zeros_like(image)
        Wx, Wh, b = weights
    states = []
    for t in range(T):
        if prefix == "gru":
            H = h.shape[1]
            a, u = x[:, t] @ Wx + b, h @ Wh
            r, z = (a + u)[:, : 2 * H].sigmoid().chunk(2, 1)
            h = (1 - z) * torch.tanh(a[:, 2 * H :] + r * u[:, 2 * H :]) + z * h
            states.append(h)
            continue
        a = x[:, t] @ Wx + h @ Wh + b
        if prefix == "attention":
            regions = image.flatten(2)
            share = (torch.einsum("nh,nhg->ng", h, regions) / h.shape[1] ** 0.5).softmax(1)
            a = a + torch.einsum("nhg,ng->nh", regions, share) @ Wattn
        if prefix == "rnn":
            h = torch.tanh(a)
        else:
            i, f, o, g = a.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * torch.tanh(g)
            h = o.sigmoid() * torch.tanh(c)
        states.append(h)
    return torch.stack(states, 1), [x, image, *weights]


def in_odd_memory(tensor, numbers):
    """An equal tensor in another memory layout; what lies between its elements is huge."""
    way = numbers.choice(("as it is", "padded", "column", "reversed axes", "expanded", "offset", "strided"))
    if way == "padded":
        base = torch.full([size + numbers.randint(1, 5) for size in tensor.shape], 1e30, dtype=tensor.dtype)
        view = base[tuple(slice(0, size) for size in tensor.shape)]
    elif way == "column":
        view = torch.full((*tensor.shape, 3), -1e30, dtype=tensor.dtype)[..., 1]
    elif way == "reversed axes":
        axes = list(range(tensor.dim()))[::-1]
        view = torch.empty([tensor.shape[k] for k in axes], dtype=tensor.dtype).permute(axes)
    elif way == "offset":
        view = torch.full((tensor.numel() + 7,), 1e30, dtype=tensor.dtype)[3:-4].view(tensor.shape)
    elif way == "strided":
        view = torch.full([2 * size for size in tensor.shape], 1e30, dtype=tensor.dtype)
        view = view[tuple(slice(None, None, 2) for _ in tensor.shape)]
    elif way == "expanded":
        return tensor[:1].clone().expand(tensor.shape)
    else:
        return tensor
    return view.copy_(tensor)


def cell_arguments(prefix, numbers, dtype):
    """Random x, image and weights of a sequence, in odd memory."""
    N, T, D, H = (numbers.choice((1, 2, 3, 5, 8)) for _ in range(4))
    cell = MODULES[prefix](D, H)
    image = (N, H, numbers.randint(1, 3), numbers.randint(1, 3)) if cell.uses_grid else (N, H)
    shapes = [(N, T, D), image, *(tuple(weight.shape) for weight in cell.parameters())]
    torch.manual_seed(numbers.randrange(2**31))
    return [in_odd_memory(torch.randn(shape, dtype=dtype) / 2, numbers) for shape in shapes]


def module_of(prefix, arguments):
    """Our module with these weights."""
    module = MODULES[prefix](arguments[0].shape[2], arguments[1].shape[1]).to(arguments[0].dtype)
    for name, value in zip(dict(module.named_parameters()), arguments[2:]):
        setattr(module, name, torch.nn.Parameter(value.detach()))
    return module


def ordinary_module(numbers, dtype):
    """A random cell. Returns: its prefix, x, image and weights in ordinary memory, and our module with them."""
    prefix = numbers.choice(PREFIXES)
    arguments = [tensor.clone() for tensor in cell_arguments(prefix, numbers, dtype)]
    return prefix, arguments, module_of(prefix, arguments)


@kind("memory layouts", often=1200)
def memory_layouts(world, numbers):
    prefix, dtype = numbers.choice(PREFIXES), numbers.choice((torch.float32, torch.float32, torch.float64))
    arguments = cell_arguments(prefix, numbers, dtype)
    h, leaves = plain(prefix, *arguments)
    dh = in_odd_memory(torch.randn(h.shape, dtype=dtype), numbers)
    wanted = [h.detach(), *torch.autograd.grad(h, leaves, dh.double())]
    with torch.no_grad():
        found, cache = getattr(project, f"{prefix}_forward")(*arguments)
        found = [found, *getattr(project, f"{prefix}_backward")(dh, cache)]
    own = [tensor.detach().requires_grad_() for tensor in arguments[:2]]
    module = module_of(prefix, arguments)
    ours = module(*own)
    found += [ours.detach(), *torch.autograd.grad(ours, [*own, *module.parameters()], dh)]
    for k, (a, b) in enumerate(zip(found, wanted * 2, strict=True)):
        if not torch.allclose(a.double(), b, rtol=1e-3 if dtype == torch.float32 else 1e-8, atol=1e-4):
            raise Wrong(f"{prefix}, {dtype}: result {k} differs by {(a - b).abs().max():.2g}")


@kind("changed in place before the backward pass", often=300)
def changed_in_place(world, numbers):
    prefix, arguments, module = ordinary_module(numbers, torch.float32)
    x = arguments[0].clone().requires_grad_()
    between = x * 1
    h = module(between, arguments[1])
    changed = numbers.choice([between, *module.parameters()])
    with torch.no_grad():
        changed.mul_(2) if numbers.random() < 0.5 else changed.add_(1)
    with contextlib.suppress(RuntimeError):
        h.sum().backward()
        raise Wrong(f"{prefix}: a tensor was changed, and the gradients are of neither")


@kind("a gradient of a gradient", often=300)
def double_backward(world, numbers):
    prefix, arguments, module = ordinary_module(numbers, torch.float64)
    x = arguments[0].clone().requires_grad_()
    layer = numbers.choice(("cell", "words", "affine", "loss"))
    with contextlib.suppress(RuntimeError):
        if layer == "cell":
            y = module(x, arguments[1])
        elif layer == "words":
            embedding = project.WordEmbedding(9, 4).double()
            x, y = embedding.W_embed, embedding(torch.randint(9, (2, 3)))
        elif layer == "loss":
            x = torch.randn(2, 3, 7, requires_grad=True)
            y = project.temporal_softmax_loss(x, torch.randint(7, (2, 3)))
        else:
            affine = world.captioner.model.vocabulary_projection
            x = torch.randn(3, affine.W.shape[0], requires_grad=True)
            y = affine(x)
        penalty = (y**2).sum() + (x**3).sum()  # its gradient depends on x in two ways; one must not be dropped
        (first,) = torch.autograd.grad(penalty, x, create_graph=True)
        first.pow(2).sum().backward()
        raise Wrong(f"{layer}, {prefix}: a penalty on the gradient is dropped in silence")


@kind("changed in place after the cell", often=300)
def in_place_after(world, numbers):
    prefix, arguments, module = ordinary_module(numbers, torch.float64)
    change = numbers.choice(("relu", "tanh", "sigmoid", "mul", "dropout"))
    grads = []
    for underscore in ("", "_"):
        h = module(*arguments[:2])
        torch.manual_seed(3)
        if change == "dropout":
            h = torch.nn.functional.dropout(h, 0.4, inplace=bool(underscore))
        else:
            h = getattr(h, change + underscore)(*([3.0] if change == "mul" else []))
        grads.append(torch.autograd.grad(h.sum(), list(module.parameters())))
    if not all(torch.allclose(a, b) for a, b in zip(*grads)):
        raise Wrong(f"{prefix}: {change}_ on its output changes the gradients")


@kind("torch's own tools", often=20)
def own_tools(world, numbers):
    prefix, arguments, module = ordinary_module(numbers, torch.float32)
    module.requires_grad_(False)
    wanted, tool = module(*arguments[:2]), numbers.choice(("trace", "meta", "pickle", "compile"))
    if tool == "trace":
        found = torch.jit.trace(module, tuple(arguments[:2]), check_trace=False)(*arguments[:2])
    elif tool == "pickle":
        found = pickle.loads(pickle.dumps(module))(*arguments[:2])
    elif tool == "compile":
        torch.compiler.reset()
        found = torch.compile(module, backend="aot_eager")(*arguments[:2])
    else:
        module.to("meta")
        return None if module(*(a.to("meta") for a in arguments[:2])).shape == wanted.shape else 1 / 0
    if not torch.allclose(found, wanted, atol=1e-5):
        raise Wrong(f"{prefix}: {tool} gives other numbers")
    return None


def odd_value(numbers, like):
    """Something that is not the tensor that is wanted."""
    return numbers.choice(
        [
            None, [1.0], like.tolist(), like.numpy(), "x", 3.5, like.long(), like.bool(), like.to(torch.complex64),
            like[:0], like[None], like.flatten()[:1].squeeze(), like.to("meta"), torch.cat([like, like]), like.half(),
            torch.empty(3, 0, 2), like.to_sparse(), object(),
        ]
    )  # fmt: skip


@kind("odd arguments of a cell", often=700)
def odd_arguments(world, numbers):
    prefix = numbers.choice(PREFIXES)
    arguments = [tensor.clone() for tensor in cell_arguments(prefix, numbers, torch.float32)]
    place = numbers.randrange(len(arguments))
    old, odd = arguments[place], odd_value(numbers, arguments[place])
    call = numbers.choice(("function", "module"))
    if call == "module":
        place = place % 2
        old, odd = arguments[place], odd_value(numbers, arguments[place])
        module = module_of(prefix, arguments)
        inputs = [odd if k == place else arguments[k] for k in range(2)]
        function = lambda *_: module(*inputs)  # noqa: E731
    else:
        arguments[place] = odd
        function = getattr(project, f"{prefix}_forward")
    if isinstance(odd, torch.Tensor) and odd.shape == old.shape and odd.dtype == old.dtype and odd.device.type == "cpu":
        return
    twice = isinstance(odd, torch.Tensor) and call == "module" and odd.dtype == old.dtype

    def names_it(error):
        return re.search(r"\b(x|h0|A|image|Wx|Wh|Wattn|b)\b", error)

    try:
        function(*arguments)
    except (TypeError, ValueError) as error:
        if "\n" in str(error) or not names_it(str(error)):
            raise Wrong(f"{prefix}: the error names nothing: {error}") from error
    except Exception as error:
        raise Wrong(f"{prefix}: {type(error).__name__} for {type(odd).__name__}: {str(error)[:100]}") from error
    else:
        if not twice:
            raise Wrong(f"{prefix}: {type(odd).__name__} {getattr(odd, 'dtype', '')} is accepted as argument {place}")


@kind("odd arguments of a captioner", often=500)
def odd_captioner(world, numbers):
    model = world.captioner.model
    images = torch.randint(256, (2, 3, 112, 112), dtype=torch.uint8)
    captions = torch.tensor([[1, 5, 6, 2], [1, 4, 2, 0]])
    V = len(model.idx_to_word)
    attack = numbers.choice(
        ("int32 captions", "float captions", "words beyond the vocabulary", "negative words", "NaN images",
         "infinite images", "int16 images", "images above 1", "one image", "no images", "images as a list",
         "more captions than images", "captions as a list")
    )  # fmt: skip
    if attack == "int32 captions":
        captions = captions.to(numbers.choice((torch.int32, torch.int16, torch.uint8)))
    elif attack == "float captions":
        captions = captions.to(numbers.choice((torch.float32, torch.bool, torch.float64)))
    elif attack == "words beyond the vocabulary":
        captions[0, numbers.choice((1, 2, 3))] = V + numbers.randint(0, 10**6)
    elif attack == "negative words":
        captions[0, numbers.choice((1, 2, 3))] = -numbers.randint(1, 10**6)
    elif attack in ("NaN images", "infinite images", "images above 1"):
        images = images.float() / 255
        value = {"N": float("nan"), "i": float("inf")}[attack[0]] if attack != "images above 1" else 1.5
        images[numbers.randrange(2), 1, numbers.randrange(112), 5] = value
    elif attack == "int16 images":
        images = images.to(numbers.choice((torch.int16, torch.int64, torch.int8)))
    elif attack == "one image":
        images = images[numbers.randrange(2)]
    elif attack == "no images":
        images = images[:0]
    elif attack == "images as a list":
        images = list(images)
    elif attack == "more captions than images":
        captions = captions[[0, 1, 0]]
    else:
        captions = captions.tolist()
    refused(model, images, captions)


# --------------------------------------------------------------------------- what is in a file


def changed(data, numbers):
    """A checkpoint or caption file with odd values in it. Returns: its bytes."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    file = io.BytesIO()
    torch.save(numbers(value), file)
    return file.getvalue()


@kind("weights that are no numbers", often=60)
def no_numbers(world, numbers):
    folder = world.fresh()
    bad = numbers.choice((float("nan"), float("inf"), -float("inf")))

    def spoil(value):
        names = [name for name, tensor in value["model"].items() if tensor.is_floating_point()]
        shapes = {name: value["model"][name].shape for name in names}
        name = numbers.choice(names)
        value["model"][name] = value["model"][name].flatten()
        value["model"][name][numbers.randrange(value["model"][name].numel())] = bad
        value["model"][name] = value["model"][name].view(shapes[name])
        return value

    (folder / "x.pt").write_bytes(changed(world.checkpoint, spoil))
    refused(project.load_captioner, folder / "x.pt", "cpu")
    use = ["--checkpoint", "x.pt", "--image", str(world.base / "photo.jpg")]
    if numbers.random() < 0.2 and well_behaved(program(lambda a: test.main(a, "lstm"), use, folder)) != 2:
        raise Wrong("captions from weights that are no numbers")


@kind("odd settings in a checkpoint", often=60)
def odd_settings(world, numbers):
    folder = world.fresh()
    name, odd = numbers.choice(
        [("hidden_dim", 0), ("hidden_dim", 10**9), ("image_size", 16384), ("image_size", -1), ("wordvec_dim", 1.5),
         ("dropout", 7.0), ("image_size", 10**8), ("hidden_dim", None), ("finetune_encoder", "yes")]
    )  # fmt: skip
    if numbers.random() < 0.3:
        name, odd = "word", numbers.choice(("x" * 100_000, "\x1b[2J", "a\nb", "\ud800"))

    def spoil(value):
        if name == "word":
            value["idx_to_token"][-1] = odd
        else:
            value["settings"][name] = odd
        return value

    (folder / "x.pt").write_bytes(changed(world.checkpoint, spoil))
    use = ["--checkpoint", "x.pt", "--image", str(world.base / "photo.jpg"), "--out", "figures"]
    well_behaved(program(lambda a: test.main(a, "lstm"), use, folder))


def zip_of(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return file.getvalue()


def legacy(value):
    """What torch before 1.6 wrote, with any pickle as its value."""
    head = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, head, _use_new_zipfile_serialization=False)
    head.seek(0)
    for _ in range(3):
        pickle.load(head)
    return head.getvalue()[: head.tell()] + value + pickle.dumps([], 2)


def claim(elements, count=1):
    """A pickle of storages that claim to be large."""
    one = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00%dX\x03\x00\x00\x00cpu\x8a\x08%sNtQ"
    claims = b"".join(one % (k % 10, struct.pack("<q", elements)) for k in range(count))
    return b"\x80\x02(" + claims + b"l."


BYTES = b"c__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", 4 * 10**9) + b"\x85R"


@kind("bombs", often=60)
def bombs(world, numbers):
    folder = world.fresh()
    padding = b"X" + struct.pack("<I", 1 << 21) + b"x" * (1 << 21) + b"0"  # two megabytes, and off the stack again
    good = pickle.dumps({"a": 1}, 2)
    data = numbers.choice(
        [
            lambda: legacy(b"\x80\x02" + BYTES + b"."),
            lambda: legacy(b"\x80\x02" + padding + BYTES + b"."),
            lambda: legacy(claim(10**9)),
            lambda: legacy(claim(10**8, 10)),
            lambda: zip_of([("a/data.pkl", b"\x80\x02" + padding + BYTES + b"."), ("a/version", "3")]),
            lambda: zip_of([("a/data.pkl", good), ("b/data.pkl", b"\x80\x02" + BYTES + b"."), ("a/version", "3")]),
            lambda: zip_of([("b/data.pkl", b"\x80\x02" + BYTES + b"."), ("a/data.pkl", good), ("a/version", "3")]),
            lambda: zip_of([("a/data.pkl", claim(10**9)), ("a/data/0", "x" * 100), ("a/version", "3")]),
            lambda: two_directories(world.checkpoint, numbers),
        ]
    )()
    (folder / "x.pt").write_bytes(data)
    use = numbers.choice((project.load_captioner, project.load_captions))
    pid = os.fork()
    if not pid:
        code, before = 3, peak_address_space()
        try:
            use(folder / "x.pt")
        except project.InputError as error:
            code = 4 if "\n" in str(error) else 0
        except BaseException:
            code = 5
        os._exit(6 if peak_address_space() - before > 1e6 else code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        reasons = {3: "accepted", 4: "not one line", 5: "another error", 6: "more than a gigabyte"}
        raise Wrong(reasons.get(code, f"the process died: {code}"))


def peak_address_space():
    """The most memory that this process ever asked for, in kB, also if it did not use it; 0 if that is not known."""
    found = (
        re.search(r"VmPeak:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
        if os.path.exists("/proc")
        else None
    )
    return int(found[1]) if found else 0


def two_directories(data, numbers):
    """An archive whose 64-bit directory differs from its 32-bit one."""
    data = bytearray(data)
    place = data.rindex(b"PK\6\6")
    field = numbers.choice((24, 32, 40, 48))
    data[place + field : place + field + 8] = struct.pack("<Q", numbers.choice((0, 1, 10**6, 10**12)))
    return bytes(data)


# ------------------------------------------------------------------------- files that are none


def no_file(path, numbers, world):
    """Put something at a path that is not the file that is wanted."""
    what = numbers.choice(
        ("missing", "folder", "pipe", "device", "empty", "sparse", "circle of links", "below a file", "another kind",
         "cut", "socket", "zeros")
    )  # fmt: skip
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to(numbers.choice(("/dev/zero", "/dev/random", "/dev/tty")))
    elif what == "empty":
        path.touch()
    elif what == "sparse":
        with open(path, "wb") as file:
            file.truncate(5 * 10**9)
    elif what == "circle of links":
        path.symlink_to(path.with_name("other"))
        path.with_name("other").symlink_to(path)
    elif what == "below a file":
        path.with_name("file").touch()
        return path.with_name("file") / path.name, what
    elif what == "another kind":
        files = [p for p in (*world.base.glob("*.*"), *world.base.glob("cv/*.png")) if p.suffix != path.suffix]
        shutil.copy(numbers.choice(sorted(p for p in files if p.is_file())), path)
    elif what == "cut":
        data = numbers.choice((world.scenes, world.checkpoint))
        path.write_bytes(data[: numbers.randrange(len(data))])
    elif what == "socket":
        import socket

        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(path.parent)  # the name of a socket can't be long
            listener.bind(path.name)
            os.chdir(here)
    elif what == "zeros":
        path.write_bytes(bytes(numbers.choice((1, 1000, 10**6))))
    return path, what


@kind("a file that is none", often=250)
def files_that_are_none(world, numbers):
    folder, lstm = world.fresh(), "cv/lstm_best.pt"
    data, best, photo = str(world.base / "scenes.pt"), str(world.base / lstm), str(world.base / "photo.jpg")
    uses = {
        "x.pt": lambda x: (train.main, ["--data", x, *SMALL]),
        "y.pt": lambda x: (test.main, ["--checkpoint", x, "--image", photo]),
        "z.safetensors": lambda x: (test.main, ["--checkpoint", x, "--image", photo]),
        "r.pt": lambda x: (train.main, ["--data", data, "--resume", x, *SMALL]),
        "i.pt": lambda x: (train.main, ["--data", data, "--init", x, *SMALL]),
        "w.pth": lambda x: (train.main, ["--data", data, *SMALL, "--encoder-weights", x]),
        "p.jpg": lambda x: (test.main, ["--checkpoint", best, "--image", x]),
        "c.csv": lambda x: (build.main, ["--images", str(world.base), "--captions", x, "--out", "built.pt"]),
        "c.json": lambda x: (build.main, ["--images", str(world.base), "--captions", x, "--out", "built.pt"]),
        "a.args": lambda x: (train.main, [f"@{x}", *SMALL]),
        "m.py": lambda x: (check.main, [x, "--timeout", "20"]),
        "o.py": lambda x: (train.main, ["--data", data, "--cell", x, *SMALL]),
    }
    name = numbers.choice(sorted(uses))
    path, what = no_file(folder / name, numbers, world)
    function, arguments = uses[name](str(path))
    code = well_behaved(program(function, arguments, folder))
    if code == 0 and (what, name) not in {("empty", "a.args")}:
        raise Wrong(f"{what} is taken for {name}")


@kind("odd places for the results", often=60)
def odd_places(world, numbers):
    folder = world.fresh()
    data, photo = str(world.base / "scenes.pt"), str(world.base / "photo.jpg")
    (folder / "file").write_text("precious")
    (folder / "pictures").mkdir()
    shutil.copy(photo, folder / "pictures/a.jpg")
    shutil.copy(photo, folder / "pictures/b.jpg")
    (folder / "c.csv").write_text("image,caption\n" + "a.jpg,a dog runs\nb.jpg,a cat sleeps\n" * 5)
    out = numbers.choice(("file", "file/below", "", ".", "pictures", "c.csv", "new/deep", "c.pt", "\n", "a*b.pt"))
    best = str(world.base / "cv/lstm_best.pt")
    builds = ["--images", "pictures", "--captions", "c.csv", "--word-threshold", "1", "--val-fraction", "0.5"]
    function, arguments = numbers.choice(
        [
            (train.main, ["--data", data, *SMALL, "--out", out]),
            (build.main, [*builds, "--size", "32", "--out", out]),
            (test.main, ["--checkpoint", best, "--image", "pictures", "--out", out]),
            (test.main, ["--checkpoint", best, "--export", out]),
        ]
    )
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    well_behaved(program(function, arguments, folder))
    lost = [p.name for p, content in before.items() if not p.exists() or p.read_bytes() != content]
    if lost:
        raise Wrong(f"--out {out!r} overwrites {lost}")


# ----------------------------------------------------------------------------------- the flags

NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e-300", "1e300", "1e400", "", " ", "٣", "1_0", "0x10", "1e3", "2**3"]
NUMBERS += ["9" * 30, "0.5", "-0.0", "1.5", "true", "None", "½", "１", "\n1", "1\0", "[1]"]


@kind("odd numbers in flags", often=150)
def odd_numbers(world, numbers):
    folder, value = world.fresh(), numbers.choice(NUMBERS).replace("\0", "")
    best, photo = str(world.base / "cv/lstm_best.pt"), str(world.base / "photo.jpg")
    if numbers.random() < 0.7:
        flag = numbers.choice(("--length-penalty", "--temperature", "--top-k", "--top-p", "--beam", "--max-length"))
        flag = numbers.choice((flag, flag, "--seed", "--num-samples", "--batch-size"))
        if flag in ("--beam", "--max-length") and value in ("1e3", "1_0"):
            value = "3"
        function, arguments = test.main, ["--checkpoint", best, "--image", photo, f"{flag}={value}"]
    else:
        flags = ("--learning-rate", "--dropout", "--clip", "--weight-decay", "--epochs", "--batch-size", "--hidden-dim")
        flag = numbers.choice((*flags, "--wordvec-dim", "--warmup", "--patience", "--save-every", "--num-train"))
        function, arguments = train.main, ["--data", str(world.base / "scenes.pt"), *SMALL, f"{flag}={value}"]
        arguments += ["--dry-run"]
    code = well_behaved(program(function, arguments, folder))
    number = None
    with contextlib.suppress(ValueError):
        number = float(value)
    if code == 0 and (number is None or not abs(number) < float("inf")):
        raise Wrong(f"{flag}={value!r} is accepted")


# ------------------------------------------------------------------------------------ the text

SCRIPTS = {
    "Chinese": "一只狗在草地上奔跑", "Korean, decomposed": "개가 잔디에서 달린다", "Arabic": "كلب يجري على العشب",
    "Hindi": "एक कुत्ता घास पर दौड़ता है", "Thai": "สุนัข วิ่ง บน หญ้า",
    "Greek": "ένας σκύλος τρέχει", "emoji": "a 🐕 runs 🏃",
    "dollars": "a $5$ bill and $\\frac{1}{0}$", "controls": "a \x1b[31mred\x1b[0m \x07dog\x00",
    "half": "a dog \ud800 runs",
    "right to left": "a \u202edog\u202c runs", "html": "<script>alert(1)</script> a dog", "long": "dog " * 5000,
    "word": "a " + "w" * 100_000, "lines": "a dog\u2028runs\nfast", "zero width": "a\u200bdog\ufeff runs",
    "combining": "a d\u0301\u0301\u0301og runs", "capitals": "İSTANBUL ǅ ß dog",
}  # fmt: skip


@kind("text of every script", often=60)
def text_of_every_script(world, numbers):
    import unicodedata

    folder = world.fresh()
    texts = [numbers.choice(list(SCRIPTS.values())) for _ in range(4)]
    texts = [unicodedata.normalize(numbers.choice(("NFC", "NFD")), text) for text in texts]
    names = [
        numbers.choice(("a{}.jpg", "b $x$ {}.jpg", "[{}].jpg", "é{}.jpg", "a {}'\".jpg")).format(k) for k in range(4)
    ]
    for name in names:
        shutil.copy(world.base / "photo.jpg", folder / name)
    form = numbers.choice(("coco", "karpathy", "csv", "token", "three columns"))
    identity = numbers.choice((int, float, str))
    if form == "coco":
        images = [{"id": identity(k), "file_name": name} for k, name in enumerate(names)]
        notes = [{"image_id": identity(k), "caption": text} for k, text in enumerate(texts)]
        content = json.dumps({"images": images, "annotations": notes})
    elif form == "karpathy":
        content = json.dumps(
            {"images": [{"filename": n, "split": s, "sentences": [{"raw": t}]}
                        for n, t, s in zip(names, texts, ("train", "train", "val", "val"))]}
        )  # fmt: skip
    else:
        flat = [re.sub(r"[\r\n\x00\ud800-\udfff\t\u2028]", " ", text) for text in texts]
        if form == "token":
            content = "".join(f"{name}#0\t{text}\n" for name, text in zip(names, flat))
        else:
            more = form == "three columns"
            rows = [f'"{n.replace(chr(34), chr(34) * 2)}","{t.replace(chr(34), "")}"' for n, t in zip(names, flat)]
            content = "image,caption" + ",source\n" * more + "\n" * (not more)
            content += "\n".join(row + ",crowdworker" * more for row in rows)
    suffix = "json" if content[0] == "{" else "csv"
    (folder / f"c.{suffix}").write_text(content, encoding="utf-8")
    arguments = ["--images", ".", "--captions", f"c.{suffix}", "--out", "x.pt", "--word-threshold", "1"]
    arguments += ["--val-fraction", "0.5", "--size", "32"]
    code = well_behaved(program(build.main, arguments, folder))
    if code == 0:
        data = project.load_captions(folder / "x.pt")
        if form == "three columns" and "crowdworker" in data.idx_to_word:
            raise Wrong("a column of other text is taken for a part of the captions")
        if any(len(word) > 1000 for word in data.idx_to_word):
            raise Wrong("a word of 100,000 letters")
        flags = ["--data", "x.pt", *SMALL]
        if well_behaved(program(lambda a: train.main(a, "lstm"), flags, folder)) == 0:
            metrics = ["--checkpoint", "cv/lstm_best.pt", "--metrics"]
            well_behaved(program(lambda a: test.main(a, "lstm"), metrics, folder))


@kind("names of files", often=100)
def names_of_files(world, numbers):
    folder = world.fresh()
    letters = [
        "$",
        "a",
        "*",
        "[",
        "]",
        "?",
        "\n",
        "\x1b[2J",
        "'",
        '"',
        " ",
        ".",
        "é",
        "\u202e",
        "#",
        "%",
        "{",
        "-",
        "$x$",
    ]
    name = "".join(numbers.choice(letters) for _ in range(numbers.randint(1, 12))).lstrip("-.@") or "a"
    best, photo = world.base / "cv/lstm_best.pt", world.base / "photo.jpg"
    use = numbers.choice(("image", "data", "checkpoint", "folder"))
    if use == "image":
        shutil.copy(photo, folder / f"{name}.jpg")
        arguments = ["--checkpoint", str(best), "--image", f"./{name}.jpg", "--out", "figures"]
        result = program(test.main, arguments, folder)
        if well_behaved(result) or len(result[1].splitlines()) != 1 or len(list(folder.glob("figures/*.png"))) != 1:
            raise Wrong(f"{name!r}: {result}")
    elif use == "checkpoint":
        shutil.copy(best, folder / f"{name}.pt")
        arguments = ["--checkpoint", f"./{name}.pt", "--image", str(photo)]
        if well_behaved(program(test.main, arguments, folder)):
            raise Wrong(f"{name!r} can't be used")
    else:
        shutil.copy(world.base / "scenes.pt", folder / f"{name}.pt")
        out = f"./{name}" if use == "folder" else "cv"
        arguments = ["--data", f"./{name}.pt", "--out", out, *SMALL]
        result = program(lambda a: train.main(a, "lstm"), arguments, folder)
        if well_behaved(result) or not (folder / out / "lstm_loss.png").exists():
            raise Wrong(f"{name!r}: {result[2][-200:]}")


# ------------------------------------------------------------------- what changes while it is used


@kind("another caption file in its place", often=20)
def another_caption_file(world, numbers):
    """The same name, size and time, as after unpacking an archive; other pictures."""
    folder = world.fresh()
    path = folder / "x.pt"
    losses = []
    for k in range(3):  # one, the other in its place, and the other alone
        value = torch.load(io.BytesIO(world.scenes), weights_only=True)
        if k:
            pictures = value["val_images"]
            pictures[:] = torch.randint(256, pictures.shape, generator=torch.Generator().manual_seed(5))
        if k == 2:
            for cache in folder.glob("*.npy"):
                cache.unlink()
        torch.save(value, path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        arguments = ["--checkpoint", str(world.base / "cv/lstm_best.pt"), "--data", "x.pt", "--num-samples", "0"]
        result = program(lambda a: test.main(a, "lstm"), arguments, folder)
        if well_behaved(result):
            raise Wrong(result[2])
        losses.append(result[1].splitlines()[0])
    if losses[1] != losses[2]:
        raise Wrong(f"the features of the old pictures were used: {losses}")


@kind("a damaged cache", often=30)
def damaged_cache(world, numbers):
    folder = world.fresh()
    shutil.copy(world.base / "scenes.pt", folder / "x.pt")
    arguments = ["--checkpoint", str(world.base / "cv/lstm_best.pt"), "--data", "x.pt", "--num-samples", "0"]
    first = program(lambda a: test.main(a, "lstm"), arguments, folder)
    (cache,) = folder.glob("*.npy")
    content = cache.read_bytes()
    damage = numbers.choice(("cut", "empty", "foreign", "text", "object", "folder", "shape"))
    cache.unlink()
    if damage == "cut":
        cache.write_bytes(content[: numbers.randrange(1, len(content) - 1)])
    elif damage == "folder":
        cache.mkdir()
    elif damage == "object":
        np.save(cache, np.array([{}]), allow_pickle=True)
    elif damage in ("foreign", "shape"):
        np.save(cache, np.zeros((3, 2), np.float64) if damage == "foreign" else np.zeros((2, 512, 6, 6), np.float16))
    else:
        cache.write_text("" if damage == "empty" else "hello")
    second = program(lambda a: test.main(a, "lstm"), arguments, folder)
    if well_behaved(second, (0, 1) if damage == "folder" else (0,)) == 0 and first[1] != second[1]:
        raise Wrong(f"{damage}: other results")
    if second[0] == 0 and "computed again" not in second[2]:
        raise Wrong(f"{damage}: nothing is said")


def checkpoints_in(folder, name="*_best*.pt"):
    """The contents of the best checkpoints of the runs below a folder, as checksums of their weights."""
    found = set()
    for path in folder.rglob(name):
        if path.name.startswith("."):  # a killed process did not finish it
            continue
        weights = torch.load(path, weights_only=True)["model"]
        found.add(hashlib.sha256(b"".join(t.numpy().tobytes() for t in weights.values())).hexdigest())
    return found


@kind("a folder with several runs", often=25)
def several_runs(world, numbers):
    """Train, resume, train again, export, in any order: no best checkpoint of a finished run is lost."""
    folder, epochs = world.fresh(), 1
    data = ["--data", str(world.base / "scenes.pt"), *SMALL[:-1]]
    for k in range(numbers.randint(2, 5)):
        step = numbers.choice(("train", "train", "resume", "lone", "export", "kill"))
        best = folder / "cv/lstm_best.pt"
        if step == "lone" and best.exists():  # the other files of the run are gone
            for path in folder.glob("cv/lstm_l*"):
                path.unlink()
            continue
        if step == "export" and best.exists():
            arguments = ["--checkpoint", "cv/lstm_best.pt", "--export", "m.safetensors"]
            well_behaved(program(lambda a: test.main(a, "lstm"), arguments, folder), (0,))
            continue
        resumed = step == "resume" and (folder / "cv/lstm_last.pt").exists()
        epochs = epochs + 1 if resumed else 1
        before = checkpoints_in(folder)
        own = checkpoints_in(folder, "lstm_best.pt") if resumed else set()  # the run may find a better one
        arguments = [*data, str(epochs), "--seed", str(k), "--out", "cv"]
        if resumed:
            last = torch.load(folder / "cv/lstm_last.pt", weights_only=True)["settings"]["seed"]
            arguments = [*data, str(epochs), "--seed", str(last), "--out", "cv", "--resume"]
        if step == "kill":  # then the run began, or it did not
            program(lambda a: train.main(a, "lstm"), arguments, folder, kill_after=numbers.uniform(0, 0.5))
        else:
            well_behaved(program(lambda a: train.main(a, "lstm"), arguments, folder), (0,))
        if before - own - checkpoints_in(folder):
            raise Wrong(f"after {step}, the best checkpoint of an earlier run is gone")


@kind("two runs in one folder", often=10)
def two_runs(world, numbers):
    folder = world.fresh()
    arguments = ["--data", str(world.base / "scenes.pt"), *SMALL[:-1], "6", "--out", "cv"]
    pids = []
    for seed in range(2):
        pid = os.fork()
        if not pid:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            os.chdir(folder)
            code = 1
            try:
                train.main([*arguments, "--seed", str(seed)], "lstm")
                code = 0
            except project.InputError:
                code = 2
            finally:
                os._exit(code)
        pids.append(pid)
        time.sleep(numbers.uniform(0, 0.3))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if sorted(codes) == [0, 0] and not list(folder.glob("cv/*_before*")):
        raise Wrong("both trained into the same files")
    if 1 in codes:
        raise Wrong(f"exit codes {codes}")


# -------------------------------------------------------------------- processes, signals, the page

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
DIFFERENT = ["--learning-rate 0.1", "--seed 3", "--dropout 0.9", "--clip 0.001", "--optimizer adam", "--epochs 2"]
DIFFERENT += ["--batch-size 3", "--schedule constant", "--weight-decay 0.9", "--num-train 7", "--batching length"]


@kind("processes with different flags", often=2)
def different_flags(world, numbers):
    folder, flag = world.fresh(), numbers.choice(DIFFERENT)
    code = "import os, sys\nsys.path.insert(0, os.environ['PROJECT'])\nif os.environ['RANK'] == '1':\n"
    code += f"    sys.argv += {flag.split()}\nexec(open(os.environ['PROJECT'] + '/train_lstm.py').read())"
    (folder / "launch.py").write_text(code)
    command = [*LAUNCH, str(numbers.randint(20000, 40000)), "launch.py", "--data", str(world.base / "scenes.pt")]
    environment = os.environ | {"PROJECT": str(Path(project.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *SMALL], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out = process.communicate(timeout=150)[0]
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        raise Wrong(f"{flag}: it hangs") from error
    if process.returncode == 0 or flag.split()[0] not in out:
        raise Wrong(f"{flag}: exit code {process.returncode}")


@kind("Ctrl-C at any moment", often=6)
def control_c(world, numbers):
    scripts = {"train_lstm.py": ["--data", "scenes", *SMALL], "test_lstm.py": ["--checkpoint", "none.pt"]}
    script = numbers.choice(sorted(scripts))
    root = Path(project.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(root / script), *scripts[script]], cwd=world.fresh(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(numbers.uniform(0.06, 5))
    process.send_signal(signal.SIGINT)
    try:
        err = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise Wrong("it does not end") from error
    if "Traceback" in err or "Exception ignored" in err:
        raise Wrong(f"a traceback: {err.strip().splitlines()[-1][:150]}")


@kind("a reader that closes our output", often=6)
def closed_output(world, numbers):
    folder, root = world.fresh(), Path(project.__file__).parents[1]
    for k in range(5):
        shutil.copy(world.base / "photo.jpg", folder / f"{k}.jpg")
    arguments = numbers.choice((["--help"], ["--checkpoint", str(world.base / "cv/lstm_best.pt"), "--image", "."]))
    command = [sys.executable, str(root / "test_lstm.py"), *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if numbers.random() < 0.5:
        process.stdout.read(numbers.randint(1, 20))
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=100)
    if "Traceback" in err or "Exception ignored" in err:
        raise Wrong(f"a traceback: {err.strip().splitlines()[-1][:150]}")


@kind("a file named like a library", often=4)
def named_like_a_library(world, numbers):
    folder, root = world.fresh(), Path(project.__file__).parents[1]
    name = numbers.choice(("numpy", "torch", "PIL", "scipy", "matplotlib", "random", "json", "tqdm"))
    (folder / f"{name}.py").write_text("def rnn_step_forward(x, prev_h, Wx, Wh, b):\n    raise NotImplementedError\n")
    command = [sys.executable, "-m", "rnn_lstm_captioning", "check", f"{name}.py"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    if "Traceback" in result.stderr or "not written yet" not in result.stdout:
        raise Wrong(f"{name}.py: {result.stderr.strip()[-150:]}")


MANNERS = ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit(0)", "raise KeyboardInterrupt", "os.fork()", "input()"]
MANNERS += ["class E(Exception): __str__ = None\n    raise E", "subprocess.Popen(['sleep', '4321'])", "os.close(1)"]
MANNERS += [
    "[os.ftruncate(k, 0) for k in range(3, 30) if ok(k)]",
    "[os.write(k, b'x\\n') for k in range(3, 30) if wr(k)]",
]
MANNERS += ["sys.setrecursionlimit(10**6); f = lambda: f(); f()", "bytearray(9 * 10**9)", "os.kill(os.getpid(), 19)"]
MANNERS += ["print('right ' * 1000)", "sys.stdout.close()", "sys.stderr = None", "os.killpg(0, 15)"]
HELP = """import os, stat, subprocess, sys
def ok(k):
    try: return stat.S_ISREG(os.fstat(k).st_mode)
    except OSError: return False
def wr(k):
    try: return os.fstat(k) and os.write(k, b"") is not None
    except OSError: return False
"""


@kind("a function with bad manners", often=12)
def bad_manners(world, numbers):
    folder = world.fresh()
    text = (ROOT / "rnn_lstm_captioning/classroom/solution.py").read_text()
    bodies = re.split(r"(?m)^(?=def )", text)
    keep = [b for b in bodies[1:] if re.match(r"def (rnn_step_forward|rnn_forward|temporal_softmax_loss)\(", b)]
    helpers = [b for b in bodies[1:] if re.match(r"def (?!rnn|lstm|gru|att|dot|temporal|word)", b)]
    bad, manner = numbers.randrange(3), numbers.choice(MANNERS)
    head, _, rest = keep[bad].partition(":\n")
    keep[bad] = f"{head}:\n    {manner}\n{rest}"
    (folder / "mine.py").write_text(HELP + bodies[0] + "".join(helpers + keep))
    code, out, err = program(check.main, ["mine.py", "--timeout", "4"], folder)
    if code not in (0, 1) or "Traceback" in err.replace('Traceback (most recent call last):\n  File "<st', ""):
        raise Wrong(f"{manner}: exit code {code}, {err[-200:]!r}")
    others = [name for k, name in enumerate(("rnn_step_forward", "rnn_forward", "temporal_softmax_loss")) if k != bad]
    others = others[1:] if bad == 0 else others  # rnn_forward calls rnn_step_forward
    if not all(re.search(rf"^{name} +right", out, re.M) for name in others) or len(out.splitlines()) < 4:
        raise Wrong(f"{manner}: {out[-300:]!r}")
    if subprocess.run(["pgrep", "-fx", "sleep 4321"], capture_output=True).stdout:
        subprocess.run(["pkill", "-fx", "sleep 4321"])
        raise Wrong("a process that the function has started lives on")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many minutes")
    parser.add_argument("--kind", choices=KINDS, nargs="+", help="only these kinds")
    args = parser.parse_args()
    chosen = args.kind or list(KINDS)
    attempts, wrong, shown, start = Counter(), Counter(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        world = World(Path(base))
        for k in range(args.attempts):
            if time.monotonic() - start > args.minutes * 60:
                break
            numbers = random.Random(f"{args.seed} {k}")
            (name,) = numbers.choices(chosen, [KINDS[name][1] for name in chosen])
            if k < len(chosen):
                name = chosen[k]  # each kind at least once
            attempts[name] += 1
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    KINDS[name][0](world, numbers)
            except Exception as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                wrong[name] += 1
                if shown[name] < 5:
                    shown[name] += 1
                    what = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
                    print(f"{name}, attempt {k}: {ascii(what)[:400]}", flush=True)
    print("\n| kind | attempts | wrong outcomes |\n|---|---|---|")
    for name in chosen:
        print(f"| {name} | {attempts[name]} | {wrong[name]} |")
    print(f"| all | {sum(attempts.values())} | {sum(wrong.values())} |")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
