"""Captioning images: which share of the encoder's own throughput is left when captions are written too?

    python -m benchmarks.captioning       # --device cuda, --images, --seconds, ...

RegNetX-400MF, H = 512, V = 3,000, random weights. No caption ends before its 15th word, which is the worst case.
Encoding alone and captioning run interleaved in one process.
"""

import argparse
import statistics
from functools import partial

import torch

from rnn_lstm_captioning import CaptioningRNN, ImageEncoder
from rnn_lstm_captioning.commands.common import reuse_memory
from rnn_lstm_captioning.data.vocabulary import SPECIAL_TOKENS
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.decoding import Decoding, beam_search
from rnn_lstm_captioning.training.precision import autocast

from .cells import compare, has_bf16, ratio_and_quartiles

V = 3000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=112, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--images", type=int, default=256, help="how many (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="time for each row (%(default)s)")
    args = parser.parse_args()
    reuse_memory()
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.images, 3, args.size, args.size), dtype=torch.uint8, device=args.device)
    encoder = ImageEncoder(pretrained=False)
    words = {word: i for i, word in enumerate(SPECIAL_TOKENS + [f"w{i}" for i in range(V - 4)])}
    machine = f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads"
    print(f"{machine}, {args.images} images of {args.size} pixels")
    print("| cell | precision | search | encoder images/s | captions/s | share | quartiles |")
    print("|" + "---|" * 7)
    for cell in ("rnn", "lstm", "attn"):
        model = CaptioningRNN(words, cell_type=cell, image_encoder=encoder).to(args.device)
        for precision in ("fp32", "bf16") if has_bf16(args.device) else ("fp32",):
            context = partial(autocast, args.device, precision)
            for beam in (1, 5):

                def caption(encode_only):
                    with evaluating(model), context():  # noqa: B023, called before the next iteration
                        features = model.encode(images)  # noqa: B023
                        if not encode_only:
                            beam_search(model, features, Decoding(beam=beam))  # noqa: B023

                a, b = compare(lambda: caption(True), lambda: caption(False), args.seconds, synchronize)  # noqa: B023
                middle, low, high = ratio_and_quartiles(a, b)
                rates = [f"{args.images / statistics.median(t):.0f}" for t in (a, b)]
                print(
                    f"| {cell} | {precision} | {'greedy' if beam == 1 else f'beam {beam}'} | {' | '.join(rates)} "
                    f"| {middle:.0%} | {low:.0%}-{high:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
