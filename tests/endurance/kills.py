"""Kill a training run with SIGKILL again and again, resume it, and check that it ends like a run without kills.

    OMP_NUM_THREADS=1 python -m tests.endurance.kills --kills 100 --when anywhere
    OMP_NUM_THREADS=1 python -m tests.endurance.kills --kills 100 --when "in a save"

"anywhere" kills at a random moment, also during the start. "in a save" kills at a random write, flush or rename. The
run (attention LSTM, scenes, a save every 2 steps) is forked, so torch is loaded only once.
"""

import argparse
import io
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch

from rnn_lstm_captioning.commands import train
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.model.checkpoint import load_checkpoint

from ..faults import FailingDisk

FLAGS = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 32 --wordvec-dim 16 --batch-size 16"
FLAGS = [*FLAGS.split(), *"--save-every 2 --quiet --resume --device cpu".split()]


def fork(folder, out, epochs, kill_at=None):
    """Start the run in a process of its own. Returns: the process ID."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        never = sys.maxsize
        with redirect_stdout(io.StringIO()), FailingDisk(never if kill_at is None else kill_at, kill=True) as disk:
            train.main(["--data", f"{folder}/scenes.pt", "--out", str(out), "--epochs", str(epochs), *FLAGS], "attn")
        if not (folder / "operations").exists():
            (folder / "operations").write_text(str(disk.count))
        code = 0
    finally:
        os._exit(code)


def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(out):
    """All tensors of a run's two checkpoints: the weights, and the optimizer's moments."""
    last, best = (load_checkpoint(out / f"attn_{which}.pt") for which in ("last", "best"))
    moments = last.training["optimizer"]["state"]
    tensors = [tensor for state in moments.values() for tensor in state.values()]
    return [*last.weights.values(), *best.weights.values(), *tensors]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--when", choices=["anywhere", "in a save"], default="anywhere")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the files of the runs go; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        test(args, args.folder or Path(temporary))


def test(args, folder):
    numbers = random.Random(args.seed)
    torch.save(make_scenes(num_train=20, num_val=4), folder / "scenes.pt")
    start = time.monotonic()
    assert finish(fork(folder, folder / "whole", args.epochs)) == 0
    seconds = time.monotonic() - start
    expected = contents(folder / "whole")
    log = (folder / "whole/attn_log.csv").read_bytes()
    for cache in folder.glob("*.npy"):
        cache.unlink()  # so that a kill can also interrupt the feature pass
    operations = int((folder / "operations").read_text())  # the writes, flushes and renames of a whole run
    kills = resumed = different = unreadable = run = 0
    while kills < args.kills:
        out, run = folder / f"run{run}", run + 1
        for _ in range(numbers.randint(1, 3)):  # a run can be killed more than once
            if kills == args.kills:
                break
            if args.when == "anywhere":
                pid = fork(folder, out, args.epochs)
                time.sleep(numbers.uniform(0, 1.1 * seconds))
                os.kill(pid, signal.SIGKILL)
            else:
                pid = fork(folder, out, args.epochs, kill_at=numbers.randrange(operations))
            kills += finish(pid) == -signal.SIGKILL
            for path in out.glob("attn_*.pt"):
                try:
                    load_checkpoint(path)
                except ValueError as error:
                    unreadable += 1
                    print(f"unreadable after a kill: {error}")
        code = finish(fork(folder, out, args.epochs))
        resumed += 1
        found = contents(out)
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        same &= (out / "attn_log.csv").read_bytes() == log and not list(out.glob(".*"))
        if code or not same:
            different += 1
            print(f"{out}: exit code {code}, identical: {same}, files left behind: {list(out.glob('.*'))}")
    outcome = "all bit-identical" if not different else f"{different} of them differ"
    print(
        f"{kills} kills, {resumed} resumed runs, {outcome}, {unreadable} unreadable files; a run takes {seconds:.1f} s"
    )
    sys.exit(bool(different or unreadable))


if __name__ == "__main__":
    main()
