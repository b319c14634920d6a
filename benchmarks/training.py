"""Whole training runs: 60 epochs over 10,000 pairs with the attention LSTM, ours against the textbook.

    python benchmarks/training.py         # --device cuda, --batch-size, --seconds, ...

The textbook runs the CNN forward and backward inside every step, projects the input of every time
step on its own, keeps all (N, T, V) scores, and computes in float32 and contiguous NCHW. Ours runs
with the frozen encoder (its features are computed once: the time of that pass is counted) and with
the encoder trained too. Steps of all variants are timed in turn in one process; the 60 epochs are
the feature pass plus 60 times 40 median steps. Peak memory is that of a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision
from cells import TextbookAttentionLSTM, peak_memory
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from rnn_lstm_captioning import CaptioningRNN, ImageEncoder
from rnn_lstm_captioning.vocabulary import END, NULL, SPECIAL_TOKENS, START

PAIRS, EPOCHS, T, V, D, H = 10_000, 60, 16, 864, 256, 512
VARIANTS = ["textbook fp32", "frozen fp32", "frozen bf16", "finetuned fp32", "finetuned bf16"]


class Textbook(nn.Module):
    """The captioner as course code has it."""

    def __init__(self):
        super().__init__()
        network = torchvision.models.regnet_x_400mf(weights=None)
        self.cnn = nn.Sequential(network.stem, network.trunk_output)
        self.project, self.embed = nn.Linear(400, H), nn.Embedding(V, D)
        self.cell, self.output = TextbookAttentionLSTM(D, H), nn.Linear(H, V)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images, captions):
        features = self.cnn((images / 255 - self.mean) / self.std)
        A = self.project(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = self.output(self.cell(self.embed(captions[:, :-1]), A))
        loss = nn.functional.cross_entropy(
            scores.flatten(0, 1), captions[:, 1:].flatten(), ignore_index=NULL, reduction="sum"
        )
        return loss / len(captions)


def make_batch(size, device):
    """Random pictures, and captions of 5 to 15 words."""
    captions = torch.full((size, T + 1), NULL)
    captions[:, 0] = START
    for row in captions:
        length = int(torch.randint(5, 16, ()))
        row[1 : length + 1] = torch.randint(4, V, (length,))
        row[length + 1] = END
    images = torch.randint(0, 256, (size, 3, 112, 112), dtype=torch.uint8)
    return images.to(device), captions.to(device)


def make_variant(name, size, device):
    """(train step, feature pass over one batch or None) of a variant."""
    torch.manual_seed(0)
    kind, precision = name.split()
    images, captions = make_batch(size, device)

    def autocast():
        return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16")

    if kind == "textbook":
        model, inputs = Textbook(), images
    else:
        words = SPECIAL_TOKENS + [f"w{i}" for i in range(V - 4)]
        encoder = ImageEncoder(pretrained=False, frozen=kind == "frozen")
        vocabulary = {word: i for i, word in enumerate(words)}
        model = CaptioningRNN(vocabulary, cell_type="attn", ignore_index=NULL, image_encoder=encoder)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=kind != "textbook")
    if kind == "frozen":
        inputs = model.encode(images).half()

    def step():
        with autocast():
            loss = model.loss(inputs, captions) if kind == "frozen" else model(images, captions)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()

    def encode():
        with autocast():
            model.encode(images)

    return step, encode if kind == "frozen" else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=VARIANTS, help="only run this variant, print its peak memory in MB")
    args = parser.parse_args()
    if args.memory_of:
        step, _ = make_variant(args.memory_of, args.batch_size, args.device)
        for _ in range(3):
            step()
        peak = torch.cuda.max_memory_allocated() / 2**20 if args.device.startswith("cuda") else peak_memory()
        print(round(peak))
        return
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    def clock(function):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        return time.perf_counter() - start

    variants = {name: make_variant(name, args.batch_size, args.device) for name in VARIANTS}
    steps, passes = ({name: [] for name in VARIANTS} for _ in range(2))
    for turn in range(args.rounds + 1):
        for name, (step, encode) in variants.items():
            repeats = 5 if name.startswith("frozen") else 1
            times = [clock(step) for _ in range(repeats)]
            features = [clock(encode)] if encode else []
            if turn:  # the first round warms up
                steps[name] += times
                passes[name] += features
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, batch {args.batch_size}")
    print("| variant | step ms | feature pass s | pairs/s | 60 epochs min | ratio | peak MB |\n|" + "---|" * 7)
    textbook = None
    for name in VARIANTS:
        batches = PAIRS / args.batch_size
        feature_pass = batches * statistics.median(passes[name]) if passes[name] else 0
        total = feature_pass + EPOCHS * batches * statistics.median(steps[name])
        textbook = textbook or total
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            name,
            "--device",
            args.device,
            "--batch-size",
            str(args.batch_size),
        ]
        memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(
            f"| {name} | {1e3 * statistics.median(steps[name]):.0f} | {feature_pass:.0f} "
            f"| {EPOCHS * PAIRS / total:.0f} | {total / 60:.1f} | {textbook / total:.1f} | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
