"""Training in several processes: they compute the same as one process, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.model.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
ROOT = Path(__file__).parents[1]
TWO = ("--standalone", "--nproc-per-node", "2")


def start(launcher, *command):
    """Start torchrun, in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, command)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err


@pytest.fixture(scope="module")
def scenes_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "scenes.pt"
    torch.save(make_scenes(num_train=40, num_val=1), path)
    return path


def train(scenes_file, out, *extra):
    flags = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 16 --wordvec-dim 8 --batch-size 15 --quiet"
    return ["train_lstm.py", "--data", scenes_file, "--out", out, *flags.split(), *extra]


def test_three_processes_compute_the_same_as_one(tmp_path):
    worker = ROOT / "tests/distributed_worker.py"
    three = start(("--standalone", "--nproc-per-node", "3"), worker, tmp_path)
    from distributed_worker import main

    main(tmp_path)
    finish(three)
    names = ["of_1_0.pt", *(f"of_3_{rank}.pt" for rank in range(3))]
    one, *others = (torch.load(tmp_path / name, weights_only=True) for name in names)
    for found in others:
        assert found["repeats"] and len(set(found["random"])) == 3
        for name in (key for key in one if key[-1].isdigit()):
            (gradients, loss), (expected, expected_loss) = found[name], one[name]
            assert gradients.keys() == expected.keys() and len(expected) > 5
            for key in expected:
                torch.testing.assert_close(gradients[key], expected[key], rtol=0, atol=1e-6, msg=f"{name} {key}")
            assert loss == pytest.approx(expected_loss, rel=1e-6)
        torch.testing.assert_close(found["features"], one["features"], rtol=1e-2, atol=1e-3)
        assert torch.equal(found["features"], found["uncached"])
        assert found["gathered"] == [[0], [1], [2]] and found["first"] == 10 and found["any"] == [True, False]
        assert found["shares"] == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.glob("cache3*"))) == 1  # one writer


def test_a_run_of_two_processes_is_resumed_exactly(scenes_file, tmp_path):
    # 40 steps per epoch, so that the signal arrives within an epoch
    flags = ("--epochs", "3", "--batch-size", "2", "--save-every", "1")
    whole = start(TWO, *train(scenes_file, tmp_path / "whole", *flags))
    parts = start(TWO, *train(scenes_file, tmp_path / "parts", *flags))
    for _ in range(2400):  # until the run has saved a checkpoint
        time.sleep(0.05)
        if (tmp_path / "parts/lstm_last.pt").exists():
            break
    os.killpg(parts.pid, signal.SIGINT)  # like Ctrl-C in a terminal
    out, err = parts.communicate(timeout=240)
    assert "stopped by a signal" in err, out + err
    assert load_checkpoint(tmp_path / "parts/lstm_last.pt").training["step"] % 40  # inside an epoch
    printed = finish(start(TWO, *train(scenes_file, tmp_path / "parts", *flags, "--resume")))[0]
    assert printed.count("best: ") == 1  # only one process prints
    finish(whole)
    whole, parts = (load_checkpoint(tmp_path / name / "lstm_last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)
    assert whole.training["history"] == parts.training["history"]
    assert (tmp_path / "whole/lstm_log.csv").read_bytes() == (tmp_path / "parts/lstm_log.csv").read_bytes()
    # one process can continue the run, with a message that it is not the same bit for bit
    alone = subprocess.run(
        [sys.executable, *map(str, train(scenes_file, tmp_path / "parts", *flags, "--epochs", "4", "--resume"))],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert alone.returncode == 0 and "another number of processes" in alone.stdout and "covers them all" in alone.stdout


def test_the_death_of_one_of_two_nodes_ends_the_run(scenes_file, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meet = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint localhost:{port} --max-restarts 0"
    endless = ("--epochs", "9999")
    nodes = [start(meet.split(), *train(scenes_file, tmp_path, *endless)) for _ in range(2)]
    try:
        for _ in range(2400):
            time.sleep(0.05)
            if (tmp_path / "lstm_last.pt").exists():
                break
        workers = subprocess.run(["pgrep", "-P", str(nodes[1].pid)], capture_output=True, text=True).stdout.split()
        for pid in [nodes[1].pid, *map(int, workers)]:  # as if the machine had lost power
            os.kill(pid, signal.SIGKILL)
        assert nodes[0].wait(timeout=120) != 0
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    err = nodes[0].communicate()[1]
    assert "train_lstm.py: another process of this run has ended" in err
    nodes[1].communicate()
    assert load_checkpoint(tmp_path / "lstm_last.pt").training["step"] > 0
