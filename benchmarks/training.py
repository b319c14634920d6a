"""Whole training runs: 60 epochs over 10,000 pairs with the attention LSTM, ours compared with the textbook's.

    python -m benchmarks.training         # --device cuda, --batch-size, --rounds

The textbook runs the CNN forward and backward in every step, projects the input of every time step separately, keeps
all (N, T, V) scores, and computes in float32 and contiguous NCHW. Ours runs with a frozen encoder, with and without
padding, and with a fine-tuned encoder. With a frozen encoder the features are computed once, and the time of that pass
is included. With ``--captions-per-image 5``, as in Flickr8k and COCO, our fine-tuning batches hold whole images, whose
features serve all their captions; the textbook shuffles captions and runs the CNN for each. Every variant runs in a
process of its own, to measure its peak memory. The runs are interleaved: only one process computes at a time. The time
of 60 epochs is the feature pass plus 60 times 10,000 pairs at the median rate.
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
import torchvision
from torch import nn

from rnn_lstm_captioning import CaptioningRNN, ImageEncoder
from rnn_lstm_captioning.commands.common import reuse_memory
from rnn_lstm_captioning.data.vocabulary import END, NULL, SPECIAL_TOKENS, START
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.precision import autocast
from rnn_lstm_captioning.training.trainer import caption_loss

from .cells import TextbookAttentionLSTM, has_bf16, peak_memory

PAIRS, EPOCHS, T, V, D, H = 10_000, 60, 16, 864, 256, 512
VARIANTS = [
    "textbook fp32",
    "frozen fp32",
    "frozen bf16",
    "frozen, length batches, fp32",
    "frozen, length batches, bf16",
    "finetuned fp32",
    "finetuned bf16",
]
SAMPLE = 10  # batches of captions


class Textbook(nn.Module):
    """The captioner as in course code."""

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


def make_pairs(count, per_image, together):
    """Random images, and captions of 5 to 15 words."""
    captions = torch.full((count, T + 1), NULL)
    captions[:, 0] = START
    for row in captions:
        length = int(torch.randint(5, 16, ()))
        row[1 : length + 1] = torch.randint(4, V, (length,))
        row[length + 1] = END
    images = torch.randint(0, 256, (-(-count // per_image), 3, 112, 112), dtype=torch.uint8)
    return Pairs(captions, torch.arange(count) // per_image, images=images, together=together)


def make_variant(name, size, device, per_image):
    """Returns: two functions. The first trains on one or more batches and returns the number of pairs. The second
    encodes a batch; it is None if the encoder is trained."""
    torch.manual_seed(0)
    pairs = make_pairs(SAMPLE * size, per_image, together=name.startswith("finetuned") and per_image > 1)
    batching = "length" if "length" in name else "padded"
    frozen, textbook = name.startswith("frozen"), name.startswith("textbook")

    context = partial(autocast, device, name.split()[-1])
    if textbook:
        model = Textbook()
    else:
        reuse_memory()  # as our commands do
        words = SPECIAL_TOKENS + [f"w{i}" for i in range(V - 4)]
        encoder = ImageEncoder(pretrained=False, frozen=frozen)
        vocabulary = {word: i for i, word in enumerate(words)}
        model = CaptioningRNN(vocabulary, cell_type="attn", ignore_index=NULL, image_encoder=encoder)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=not textbook)
    batch = pairs.images[:size].to(device)  # for the feature pass

    def encode():
        with torch.no_grad(), context():
            return model.encode(batch)

    if frozen:
        features = encode().half().cpu()
        features = features[torch.arange(len(pairs.images)) % len(features)]  # any features: only the time counts
        pairs = Pairs(pairs.captions, pairs.image_index, features=features)

    def train():
        batches = pairs.row_batches(size, batching)
        chosen = batches if frozen else batches[:1]
        for rows in chosen:
            with context():
                if textbook:
                    images = pairs.images[pairs.image_index[rows]]
                    loss = model(images.to(device), pairs.captions[rows].to(device))
                else:
                    loss = caption_loss(model, pairs.batch(rows, device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5)
            optimizer.step()
        return sum(map(len, chosen))

    return train, encode if frozen else None


def serve(name, size, device, per_image):
    """Do what standard input asks for, and print the seconds per pair or image, or the peak memory in MB."""
    train, encode = make_variant(name, size, device, per_image)
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for line in sys.stdin:
        if line.strip() == "memory":
            peak = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else peak_memory()
            print(peak, flush=True)
            continue
        synchronize()
        start = time.perf_counter()
        count = train() if line.strip() == "train" else 0 if encode is None else len(encode())
        synchronize()
        print((time.perf_counter() - start) / max(count, 1) if count else 0.0, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--captions-per-image", type=int, default=1)
    parser.add_argument("--serve", choices=VARIANTS, help="for the script itself: run one variant in this process")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.batch_size, args.device, args.captions_per_image)
        return
    variants, processes = [name for name in VARIANTS if "bf16" not in name or has_bf16(args.device)], {}
    for name in variants:
        command = [sys.executable, "-m", "benchmarks.training", "--serve", name, "--device", args.device]
        command += ["--batch-size", str(args.batch_size), "--captions-per-image", str(args.captions_per_image)]
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(name, request):
        processes[name].stdin.write(request + "\n")
        processes[name].stdin.flush()
        return float(processes[name].stdout.readline())

    rates = {name: ([], []) for name in variants}  # seconds per pair in training, per image in encoding
    for turn in range(args.rounds + 1):
        for name, (training, encoding) in rates.items():
            measured = ask(name, "train"), ask(name, "encode")
            if turn:  # the first round is a warm-up
                training.append(measured[0])
                encoding.append(measured[1])
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, batch {args.batch_size}, ",
        end="",
    )
    print(f"{args.captions_per_image} captions per image")
    print(
        "| variant | pairs/s, training | feature pass (s) | 60 epochs (min) | ratio | quartiles | peak MB |\n|"
        + "---|" * 7
    )

    def total(training, encoding):
        return PAIRS * (encoding / args.captions_per_image + EPOCHS * training)  # seconds

    base = rates[VARIANTS[0]]
    if len(variants) < len(VARIANTS):
        print("| the others, bf16 | this processor has no instructions for bf16 |" + " - |" * 5)
    for name, (training, encoding) in rates.items():
        seconds = total(statistics.median(training), statistics.median(encoding))
        ratios = [total(*theirs) / total(*ours) for theirs, ours in zip(zip(*base), zip(training, encoding))]
        low, middle, high = statistics.quantiles(ratios, n=4) if args.rounds > 1 else ratios * 3
        print(
            f"| {name} | {1 / statistics.median(training):.0f} "
            f"| {PAIRS / args.captions_per_image * statistics.median(encoding):.0f} "
            f"| {seconds / 60:.1f} | {middle:.1f} | {low:.1f}-{high:.1f} | {ask(name, 'memory'):.0f} |",
            flush=True,
        )
    for process in processes.values():
        process.stdin.close()


if __name__ == "__main__":
    main()
