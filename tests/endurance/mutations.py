"""Read thousands of damaged files. Each must be used, or refused in one sentence, with little time and memory.

    OMP_NUM_THREADS=1 python -m tests.endurance.mutations --files 5000

The files are caption files, checkpoints (.pt and .safetensors), CNN weights, images, and captions files of all kinds.
Their bytes are cut, copied, changed, or replaced by huge numbers. Values inside caption files and checkpoints are
replaced by odd ones, or deleted. What is still accepted is used: all splits are read, a checkpoint captions an image.
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torchvision
from PIL import Image

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.commands import train
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.data.images import try_to_load
from rnn_lstm_captioning.data.readers import read_captions
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.model.checkpoint import export_safetensors, load_checkpoint
from rnn_lstm_captioning.model.encoder import ImageEncoder

SMALL = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 16 --wordvec-dim 8 --epochs 1 --quiet --device cpu"


def originals(folder):
    """Valid files of every kind. Returns: a dict, kind -> (bytes, suffix, a function that uses such a file)."""
    torch.save(make_scenes(num_train=6, num_val=2), folder / "scenes.pt")
    with redirect_stdout(io.StringIO()):
        train.main(["--data", str(folder / "scenes.pt"), "--out", str(folder), *SMALL.split()], "attn")
    export_safetensors(load_checkpoint(folder / "attn_last.pt"), folder / "model.safetensors")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "weights.pth")
    image = Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    kinds = {
        "caption file": ("scenes.pt", use_captions),
        "checkpoint": ("attn_last.pt", use_checkpoint),
        "safetensors": ("model.safetensors", use_checkpoint),
        "weights": ("weights.pth", lambda path: ImageEncoder(name="squeezenet1_1", weights_file=path)),
    }
    kinds = {kind: ((folder / name).read_bytes(), Path(name).suffix, use) for kind, (name, use) in kinds.items()}
    kinds["caption file, changed inside"] = kinds["caption file"]
    kinds["checkpoint, changed inside"] = kinds["checkpoint"]
    kinds["checkpoint to resume, changed inside"] = (*kinds["checkpoint"][:2], use_to_resume)
    for suffix in ("jpg", "png", "gif", "tiff", "webp", "bmp"):
        file = io.BytesIO()
        image.save(file, {"jpg": "jpeg"}.get(suffix, suffix))
        kinds[suffix] = (file.getvalue(), f".{suffix}", use_image)
    notes = [{"image_id": k, "caption": f"a dog number {k}"} for k in range(9)]
    coco = {"images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(9)], "annotations": notes}
    sentences = [{"raw": "a dog"}, {"raw": "two cats, asleep"}]
    karpathy = {"images": [{"filename": f"{k}.jpg", "split": "val", "sentences": sentences} for k in range(9)]}
    texts = {
        "COCO JSON": (json.dumps(coco), ".json"),
        "Karpathy JSON": (json.dumps(karpathy), ".json"),
        "CSV": ("image,caption\n" + "".join(f'{k}.jpg,"a dog, number {k}"\n' for k in range(9)), ".csv"),
        "token": ("".join(f"{k}.jpg#0\ta dog number {k}\n" for k in range(9)), ".txt"),
    }
    return kinds | {kind: (text.encode(), suffix, use_text) for kind, (text, suffix) in texts.items()}


def use_captions(path):
    data = load_captions(path)
    for split in data.splits.values():
        split.images[-1].sum(), split.first(3).captions.max(), split.image_index.max()


def use_checkpoint(path):
    load_captioner(path, "cpu").caption(Image.new("RGB", (50, 40), "red"), beam=2)


def use_to_resume(path):
    flags = ["--data", str(path.parent / "scenes.pt"), "--out", str(path.parent / "out"), "--resume", str(path)]
    with redirect_stdout(io.StringIO()):
        train.main([*flags, *SMALL.split(), "--epochs", "2"], "attn")


def use_image(path):
    image, reason = try_to_load(path, 64)
    if image is None:
        raise InputError(f"{path}: {reason}")


def use_text(path):
    read_captions(path, [])


def mutate(data, numbers):
    """The bytes after one to four random changes."""
    data = bytearray(data)
    for _ in range(numbers.randint(1, 4)):
        # the important bytes are at both ends: headers, pickles, directories
        edge = numbers.choice([64, 1024, len(data)])
        position = numbers.randrange(min(edge, len(data)) or 1)
        position = numbers.choice([position, max(0, len(data) - 1 - position)])
        length = numbers.choice([1, 2, 4, 8, 64])
        kind = numbers.randrange(7)
        if kind == 0:
            data[position : position + 1] = bytes([numbers.randrange(256)])
        elif kind == 1:
            data[position : position + length] = numbers.randbytes(length)
        elif kind == 2:
            data[position : position + length] = numbers.choice([b"\0", b"\xff", b"\x7f"]) * length  # huge numbers
        elif kind == 3:
            del data[position : position + length]
        elif kind == 4:
            other = numbers.randrange(len(data) or 1)
            data[position:position] = data[other : other + length]
        elif kind == 5 and numbers.random() < 0.3:
            del data[position:]
        else:
            digits = numbers.choice([b"9" * 12, b"-1", b"1e999", b"[" * 500, b"\xf0\x9f", b"\n\n", b'"'])
            data[position:position] = digits
    return bytes(data)


ODD = [None, True, -1, 0, 10**12, 1.5, float("nan"), "", "text", [], {}, [None], torch.tensor(1.0), torch.zeros(0)]
ODD += [torch.full((3, 3), float("nan")), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(9, dtype=torch.complex64)]


def change_inside(data, numbers):
    """The bytes of a .pt file with a dict. One to three of its values are replaced by odd ones, or deleted."""
    value = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(numbers.randint(1, 3)):
        container, key = {"": value}, ""
        while isinstance(container[key], dict | list) and container[key] and numbers.random() < 0.8:
            container = container[key]
            key = numbers.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if key == "":
            continue
        if numbers.random() < 0.3 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = numbers.choice(ODD)
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    numbers, outcomes, slowest, wrong = random.Random(args.seed), Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = originals(Path(folder))
        names = sorted(kinds)
        for k in range(args.files):
            kind = names[k % len(names)]
            data, suffix, use = kinds[kind]
            path = Path(folder) / f"mutated{suffix}"
            change = change_inside if "inside" in kind else mutate
            path.write_bytes(change(data, numbers))
            start = time.monotonic()
            try:
                with redirect_stderr(io.StringIO()):
                    use(path)
                outcomes[kind, "used"] += 1
            except InputError as error:
                outcomes[kind, "refused"] += 1
                if "\n" in str(error):
                    print(f"{kind} {k}: more than one sentence: {error}")
                    wrong += 1
            except Exception as error:
                print(f"{kind} {k}: {type(error).__name__}: {error}")
                wrong += 1
                kept = Path(tempfile.gettempdir()) / f"wrong_{k}{suffix}"
                kept.write_bytes(path.read_bytes())
            slowest = max(slowest, time.monotonic() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for kind in names:
        print(f"{kind}: {outcomes[kind, 'used']} used, {outcomes[kind, 'refused']} refused")
    print(f"{args.files} files, {wrong} wrong outcomes; the slowest took {slowest:.2f} s; peak memory {memory:.2f} GB")
    sys.exit(bool(wrong or slowest > 10 or memory > 2))


if __name__ == "__main__":
    main()
