"""How much faster are two processes than one, with one thread each?

    python -m benchmarks.processes --data datasets/flickr8k_112.pt --encoder-weights FILE    # --rounds

Attention LSTM, hidden size 512, joint batches of 128, frozen MobileNetV2, fp32 and bf16. train_lstm_attention.py runs
under torchrun with one and with two processes, interleaved. Prints the captions per second of the epochs after the
first, the median over the rounds. The features are computed beforehand.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def captions_per_second(processes, precision, args, out):
    flags = ["--data", args.data, "--encoder", "mobilenet_v2", "--encoder-weights", args.encoder_weights]
    flags += [
        "--epochs",
        "3",
        "--num-train",
        "6000",
        "--batch-size",
        "128",
        "--precision",
        precision,
        "--quiet",
        "--out",
        out,
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "train_lstm_attention.py", *flags]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    rates = [float(rate) for rate in re.findall(r"(\d+) captions/s", result.stdout)]
    return statistics.mean(rates[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--encoder-weights", default="none")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.encoder_weights != "none":
        args.encoder_weights = str(Path(args.encoder_weights).resolve())
    with tempfile.TemporaryDirectory() as out:
        for precision in ("fp32", "bf16"):
            captions_per_second(2, precision, args, out)  # to compute the features
            rounds = [[captions_per_second(n, precision, args, out) for n in (1, 2)] for _ in range(args.rounds)]
            one, two = map(statistics.median, zip(*rounds))
            ratios = " ".join(f"{b / a:.2f}" for a, b in rounds)
            print(
                f"{precision}: {one:.0f} captions/s with one process, {two:.0f} with two; ratios {ratios}", flush=True
            )


if __name__ == "__main__":
    main()
