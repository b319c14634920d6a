"""Nothing is lost: full disks, killed runs, damaged and malicious files, runs that diverge."""

import io
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace as replaced
from pathlib import Path

import pytest
import torch
from faults import FailingDisk
from helpers import run_test, run_train

from rnn_lstm_captioning import InputError, load_captioner
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.errors import RunFailed
from rnn_lstm_captioning.model import checkpoint as checkpoint_module
from rnn_lstm_captioning.model.checkpoint import export_safetensors, load_checkpoint, restore_captioner
from rnn_lstm_captioning.model.encoder import ImageEncoder
from rnn_lstm_captioning.storage import load, replacing, save
from rnn_lstm_captioning.training import trainer

SMALL = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 16 --wordvec-dim 8 --batch-size 16 --quiet"
SMALL = [*SMALL.split(), "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoint(scenes_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train(scenes_file, out, "--epochs", "1")
    return out / "lstm_last.pt"


def train(scenes_file, out, *extra):
    run_train("lstm", ["--data", str(scenes_file), "--out", str(out), *SMALL, *extra])


def read(path):
    """The raw dict in a file."""
    return torch.load(path, weights_only=True)


def assert_same_run(a, b):
    a, b = (load_checkpoint(folder / "lstm_last.pt") for folder in (a, b))
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert a.training["history"] == b.training["history"]


# ------------------------------------------------------------------------------ the disk fails


def test_whatever_write_fails_the_last_good_checkpoint_loads(tmp_path):
    path, old = tmp_path / "x.pt", {"step": 1, "weights": torch.arange(1000.0)}
    new = {"step": 2, "weights": torch.arange(2000.0)}
    save(old, path)
    for at in range(1000):
        try:
            with FailingDisk(at):
                save(new, path)
        except OSError as error:
            assert "No space left" in str(error)
            step = load(path)["step"]
            assert os.listdir(tmp_path) == ["x.pt"]
        else:
            break
        renamed = step == 2  # only the flush of the folder was still to come
    assert at > 20 and renamed and load(path)["step"] == 2


def test_a_run_on_a_full_disk_names_the_last_good_checkpoint(scenes_file, tmp_path):
    train(scenes_file, tmp_path / "whole", "--epochs", "1")
    train(scenes_file, tmp_path / "parts", "--epochs", "1")
    last = tmp_path / "parts/lstm_last.pt"
    good = last.read_bytes()
    message = r"No space left.*lstm_last\.pt is as it was last saved: --resume continues"
    with pytest.raises(RunFailed, match=message), FailingDisk(30):
        train(scenes_file, tmp_path / "parts", "--epochs", "2", "--resume")
    assert last.read_bytes() == good and not list(last.parent.glob(".*"))
    for name in ("whole", "parts"):
        train(scenes_file, tmp_path / name, "--epochs", "2", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_saving_creates_missing_folders(tmp_path):
    path = tmp_path / "a/b/x.pt"
    save({"x": 1}, path)
    assert load(path) == {"x": 1}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(scenes_file, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises((InputError, OSError), match=re.escape(str(tmp_path))):
        train(scenes_file, tmp_path)


def test_a_file_in_place_of_the_folder_is_an_error(scenes_file, tmp_path):
    (tmp_path / "cv").write_text("")
    with pytest.raises(InputError, match="--out .*cv can't be written to: File exists"):
        train(scenes_file, tmp_path / "cv")


@pytest.mark.skipif(os.name != "posix", reason="dead processes are recognised on POSIX only")
def test_files_that_a_killed_process_left_are_removed_by_the_next_writer(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with replacing(tmp_path / "x.pt") as unfinished:
        unfinished.write_text("mine")
        left = Path(str(unfinished).replace(str(os.getpid()), str(dead.pid)))
        left.write_text("left behind", encoding="utf-8")
        of_other_file = left.with_name(left.name.replace(".x.", ".y."))
        of_other_file.write_text("left behind too")
        with replacing(tmp_path / "x.pt") as second:
            assert second == unfinished and not left.exists() and second.exists()
            second.write_text("mine")
        unfinished.write_text("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([of_other_file.name, "x.pt"])


# ------------------------------------------------------------------------------------- kill -9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
@pytest.mark.parametrize("when, epochs", [("anywhere", "3"), ("in a save", "3"), ("in a save", "1")])
def test_a_killed_run_resumes_bit_for_bit(when, epochs, scenes_file, tmp_path):
    """The short form of tests/endurance/kills.py."""
    command = [sys.executable, "-m", "tests.endurance.kills", "--kills", "4", "--when", when, "--folder", str(tmp_path)]
    command += ["--epochs", epochs]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.match(r"4 kills, \d+ resumed runs, all bit-identical, 0 unreadable files", result.stdout)


def test_resume_without_a_checkpoint_starts_from_the_beginning(scenes_file, tmp_path, capsys):
    train(scenes_file, tmp_path, "--epochs", "1", "--resume")
    assert "starting from the beginning" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no such checkpoint"):
        train(scenes_file, tmp_path, "--epochs", "1", "--resume", str(tmp_path / "none.pt"))


def test_a_run_that_patience_ended_does_not_continue(scenes_file, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "validation_cider", lambda *_: 5.0)
    train(scenes_file, tmp_path, "--epochs", "9", "--patience", "2")
    before = load_checkpoint(tmp_path / "lstm_last.pt").training["step"]
    (tmp_path / "lstm_log.csv").unlink()  # as if killed before it was written
    train(scenes_file, tmp_path, "--epochs", "9", "--patience", "2", "--resume")
    assert load_checkpoint(tmp_path / "lstm_last.pt").training["step"] == before
    assert (tmp_path / "lstm_log.csv").read_text().count("\n") == 4


def test_sigterm_saves_and_more_epochs_stretch_the_schedule(scenes_file, tmp_path, monkeypatch, capsys):
    show = trainer.Trainer.show_progress
    monkeypatch.setattr(trainer.Trainer, "show_progress", lambda *a: (show(*a), signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(KeyboardInterrupt):
        train(scenes_file, tmp_path, "--epochs", "2")
    assert load_checkpoint(tmp_path / "lstm_last.pt").training["step"] == 1
    monkeypatch.setattr(trainer.Trainer, "show_progress", show)
    train(scenes_file, tmp_path, "--epochs", "3", "--resume")
    assert "--epochs was 2, is 3: the learning rate's schedule covers them all" in capsys.readouterr().out


# ------------------------------------------------------------------------------ malicious files


class Evil:
    """When it is unpickled, it creates a file."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (exec, (f"open({self.trace!r}, 'w')",))


def readers(path):
    return [
        lambda: load_captioner(path),
        lambda: load_captions(path),
        lambda: ImageEncoder(weights_file=path, name="squeezenet1_1"),
    ]


def assert_refused(path, *messages):
    start = time.monotonic()
    for reader in readers(path):
        with pytest.raises(InputError) as error:
            reader()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)  # torch's message advises turning the protection off
        assert not messages or any(message in str(error.value) for message in messages), error.value
    assert time.monotonic() - start < 10


def test_code_in_a_pickle_never_runs(tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "x.pt"
    for content in (Evil(trace), {"model": Evil(trace)}, [Evil(trace)]):
        torch.save(content, path)
        assert_refused(path, "only these are read")
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert_refused(path)
        path.write_bytes(pickle.dumps(content, 2))
        assert_refused(path)
    assert not trace.exists()


def test_files_that_claim_more_than_they_contain_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1).expand(10**13)}, path)
    assert_refused(path, "claims more elements than it stores")
    torch.save({"x": torch.empty(10**13, device="meta")}, path)
    assert_refused(path, "claims more elements than it stores", "only these are read")
    # a zip bomb: 200 MB of zeros in 200 kB
    torch.save({"x": torch.zeros(5)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content + bytes(200_000_000 if name.endswith("data/0") else 0))
    assert path.stat().st_size < 10**6
    assert_refused(path, "its contents are larger than the file")


def test_pickles_that_grow_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": bytearray(1000)}, path)
    assert_refused(path)
    itself, nested, doubled = [], [], []
    itself.append(itself)
    for _ in range(200):
        nested = [nested]
    for _ in range(60):
        doubled = [doubled, doubled]  # 2^60 lists, if each is visited every time it occurs
    for value in (itself, nested, doubled):
        torch.save({"x": value}, path)
        assert_refused(path)


def test_headers_that_claim_ten_terabytes_are_refused(tmp_path):
    """The sizes in a zip's directory are set to 10 TB, and so are those in the pickle of the older format."""
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    for header in re.finditer(rb"PK\x01\x02", bytes(data)):
        data[header.start() + 20 : header.start() + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)
    assert_refused(path)
    file = io.BytesIO()
    torch.save({"x": torch.zeros(1000)}, file, _use_new_zipfile_serialization=False)
    small, large = pickle.dumps(1000, 2)[2:-1], pickle.dumps(2_500_000_000_000, 2)[2:-1]
    assert file.getvalue().count(small) >= 2
    path.write_bytes(file.getvalue().replace(small, large))
    assert_refused(path)


def test_a_flipped_bit_in_a_checkpoint_is_found_or_changes_nothing(checkpoint, tmp_path):
    data, path, numbers = checkpoint.read_bytes(), tmp_path / "x.pt", random.Random(0)
    expected = load_checkpoint(checkpoint)
    refused = 0
    for _ in range(60):
        position = numbers.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << numbers.randrange(8)]) + data[position + 1 :])
        try:
            found = load_checkpoint(path)
        except InputError:
            refused += 1
        else:  # the bit is outside the parts of the archive
            assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)
            assert found.settings == expected.settings
    assert refused > 50
    for length in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="x.pt is not a checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(settings=lambda s: s | {"hidden_dim": 10**9}), "another size"),
        (dict(settings=lambda s: s | {"wordvec_dim": "many"}), "another size"),
        (dict(settings=lambda s: {}), "hidden_dim"),
        (dict(encoder=lambda _: "regnet_y_128gf"), "weights of regnet_y_128gf"),
        (dict(encoder=lambda _: "nonsense"), "nonsense"),
        (dict(image_size=lambda _: 10**6), "1000000 pixels"),
        (dict(format=lambda _: 99), "format 99; this version of the project reads 1 to"),
        (dict(cell=lambda _: "none"), "unknown cell, none"),
        (dict(idx_to_token=lambda words: words[:-1]), "another size"),
        (dict(idx_to_token=lambda words: [*words[:-1], words[-2]]), "word_to_idx"),
        (dict(idx_to_token=lambda words: [*words[:-1], ["a"]]), "words that are not text"),
        (dict(model=lambda model: {k: v for k, v in model.items() if k != "cell.Wx"}), "cell.Wx"),
        (dict(model=lambda model: model | {"cell.Wx": "text"}), "cell.Wx"),
    ],
)
def test_parts_of_a_checkpoint_that_do_not_fit_are_named(change, message, checkpoint, tmp_path):
    parts = read(checkpoint)
    torch.save(parts | {key: f(parts[key]) for key, f in change.items()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        load_captioner(tmp_path / "x.pt")


def test_a_training_state_that_does_not_fit_is_refused(checkpoint, scenes_file, tmp_path):

    def set_first(name, value):
        return lambda training: training["optimizer"]["state"][0].update({name: value})

    changes = [
        set_first("exp_avg", torch.zeros(3, 3)),
        set_first("exp_avg", torch.tensor(1.0)),  # once crashed: the optimizer wrote outside its memory
        set_first("exp_avg_sq", "text"),
        set_first("step", torch.zeros(2)),
        lambda training: training["optimizer"].update(state={}),
        lambda training: training.pop("optimizer"),
        lambda training: training.update(best=""),
        lambda training: training.update(step=-1),
        lambda training: training["history"][0].pop("val_loss"),
    ]
    for change in changes:
        parts = read(checkpoint)
        change(parts["training"])
        torch.save(parts, tmp_path / "lstm_last.pt")
        with pytest.raises(InputError, match="its training state doesn't fit its weights"):
            train(scenes_file, tmp_path, "--epochs", "1", "--resume")


def test_moments_in_another_memory_layout_give_the_same_weights(checkpoint, scenes_file, tmp_path):
    """The fused optimizer ignores strides: it writes one element after the other."""
    runs = []
    for name in ("whole", "parts"):
        parts = read(checkpoint)
        for moments in parts["training"]["optimizer"]["state"].values():
            if name == "parts" and moments["exp_avg"].dim() == 2:
                moments["exp_avg"] = moments["exp_avg"].T.contiguous().T
        (tmp_path / name).mkdir()
        torch.save(parts, tmp_path / name / "lstm_last.pt")
        train(scenes_file, tmp_path / name, "--epochs", "2", "--resume")
        runs.append(load_checkpoint(tmp_path / name / "lstm_last.pt").weights)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_an_unevaluated_last_epoch_is_evaluated_on_resume_in_another_folder(checkpoint, scenes_file, tmp_path):
    parts = read(checkpoint)
    parts["training"] |= {"history": [], "best": None}  # as if killed after the only epoch's last step
    torch.save(parts, tmp_path / "lstm_last.pt")
    train(scenes_file, tmp_path, "--epochs", "1", "--resume")
    assert len(load_checkpoint(tmp_path / "lstm_last.pt").training["history"]) == 1


def test_a_checkpoint_of_format_1_loads(checkpoint, tmp_path):
    parts = read(checkpoint)
    for name in ("image_input", "image_norm", "image_size", "init", "self_critical", "deterministic"):
        parts["settings"].pop(name, None)
    parts["training"] = {k: parts["training"][k] for k in ("optimizer", "step", "best", "history")}
    parts["training"]["random_state"] = torch.get_rng_state()
    torch.save(parts | {"format": 1}, tmp_path / "lstm_last.pt")
    assert load_captioner(tmp_path / "lstm_last.pt").model.image_input == "h0"


# ---------------------------------------------------------------------------------- safetensors


def test_a_model_shared_as_safetensors_writes_the_same_captions(checkpoint, tmp_path, scenes_file, capsys):
    path = tmp_path / "model.safetensors"
    run_test("lstm", ["--checkpoint", str(checkpoint), "--export", str(path)])
    assert str(path) in capsys.readouterr().out
    parts, shared = load_checkpoint(checkpoint), load_checkpoint(path)
    assert shared.training is None and shared.data == "scenes.pt"
    assert str(scenes_file.parent).encode() not in path.read_bytes()
    assert all(torch.equal(parts.weights[name], shared.weights[name]) for name in parts.weights)
    images = load_captions(scenes_file).splits["val"].images
    texts = [[c.text for c in load_captioner(p).caption_images(images)] for p in (checkpoint, path)]
    assert texts[0] == texts[1]
    train(scenes_file, tmp_path, "--epochs", "1", "--init", str(path))  # training can start from it too
    with pytest.raises(InputError, match="holds no training state"):
        train(scenes_file, tmp_path, "--epochs", "1", "--resume", str(path))


@pytest.mark.parametrize(("bits", "share", "error"), [(16, 0.6, 1e-3), (8, 0.4, 8e-3)])
def test_a_model_with_fewer_bits_is_smaller_and_close(bits, share, error, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "SMALL_CONVOLUTION", 1000)
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    run_test("lstm", ["--checkpoint", str(checkpoint), "--export", str(whole)])
    run_test("lstm", ["--checkpoint", str(checkpoint), "--export", str(small), "--export-bits", str(bits)])
    assert small.stat().st_size < share * whole.stat().st_size
    before, after = load_checkpoint(whole).weights, load_checkpoint(small).weights
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        if tensor.dim() < 2:
            assert torch.equal(tensor, after[name])
        else:
            row, small_convolution = tensor.flatten(1).abs().amax(1), tensor.dim() == 4 and tensor.numel() < 1000
            limit = 1e-3 if small_convolution else error
            assert ((tensor - after[name]).flatten(1).abs().amax(1) <= limit * row + 1e-7).all()
    restore_captioner(load_checkpoint(small), small)


@pytest.mark.parametrize("shape", [(8, 64), ()])
def test_integers_without_their_scale_are_refused(shape, checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    found = load_checkpoint(checkpoint)
    found.weights["cell.Wx"] = torch.ones(shape, dtype=torch.int8)
    for scale in ({}, {"cell.Wx.scale": torch.ones(3)}):
        export_safetensors(replaced(found, weights=found.weights | scale), path)
        with pytest.raises(InputError, match=r"x\.safetensors is not a checkpoint .* no scale for cell\.Wx"):
            load_checkpoint(path)


def test_damaged_safetensors_are_refused(checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    export_safetensors(load_checkpoint(checkpoint), path)
    data, numbers = path.read_bytes(), random.Random(1)
    for position in [numbers.randrange(len(data)) for _ in range(40)]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 64]) + data[position + 1 :])
        with pytest.raises(InputError, match=r"x\.safetensors"):
            restore_captioner(load_checkpoint(path), path)
    for content in (b"", b"text", data[:1000], struct.pack("<Q", 10**13) + data[8:], struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.safetensors is not a checkpoint"):
            load_checkpoint(path)


# --------------------------------------------------------------------------- runs that go wrong


def test_a_run_that_diverges_names_step_and_checkpoint(scenes_file, tmp_path):
    flags = ["--learning-rate", "1e30", "--clip", "0", "--schedule", "constant"]
    with pytest.raises(RunFailed, match=r"step \d+: the loss is .*--learning-rate or --clip; nothing was saved"):
        train(scenes_file, tmp_path, "--epochs", "2", *flags)
    with pytest.raises(
        RunFailed, match=r"lstm_last\.pt is as it was last saved: --init .*lstm_last\.pt begins another run"
    ):
        train(scenes_file, tmp_path, "--epochs", "2", "--save-every", "1", *flags)
    with pytest.raises(InputError, match=r"to begin a new run with its weights, use --init"):
        train(scenes_file, tmp_path, "--epochs", "2", "--resume", "--clip", "0", "--schedule", "constant")


def test_an_earlier_run_is_not_overwritten(scenes_file, tmp_path, capsys):
    train(scenes_file, tmp_path, "--epochs", "1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "_before" not in capsys.readouterr().out
    train(scenes_file, tmp_path, "--epochs", "1", "--seed", "1")
    assert "lstm_*_before; use --resume" in capsys.readouterr().out
    for name, content in before.items():
        stem, suffix = name.split(".")
        assert (tmp_path / f"{stem}_before.{suffix}").read_bytes() == content
    assert (tmp_path / "lstm_best.pt").read_bytes() != before["lstm_best.pt"]
    train(scenes_file, tmp_path, "--epochs", "2", "--seed", "1", "--resume")
    assert (tmp_path / "lstm_best_before.pt").read_bytes() == before["lstm_best.pt"]
    second = (tmp_path / "lstm_best.pt").read_bytes()
    train(scenes_file, tmp_path, "--epochs", "1", "--seed", "2")  # a third run
    assert "lstm_*_before2;" in capsys.readouterr().out
    assert (tmp_path / "lstm_best_before.pt").read_bytes() == before["lstm_best.pt"]
    assert (tmp_path / "lstm_best_before2.pt").read_bytes() == second
    for path in tmp_path.glob("lstm_last*"):
        path.unlink()
    third = (tmp_path / "lstm_best.pt").read_bytes()
    train(scenes_file, tmp_path, "--epochs", "1", "--seed", "3")  # a best checkpoint without a last one is kept too
    assert (tmp_path / "lstm_best_before3.pt").read_bytes() == third


def test_the_log_shows_clipping_and_gradient_norms(scenes_file, tmp_path):
    for clip, clipped in (("1e-9", "1"), ("1e9", "0"), ("0", "0")):
        train(scenes_file, tmp_path, "--epochs", "1", "--clip", clip)
        header, row = ((tmp_path / "lstm_log.csv").read_text()).splitlines()
        row = dict(zip(header.split(","), row.split(",")))
        assert row["clipped"] == clipped and float(row["gradient_norm"]) > 0


def test_the_same_seed_gives_the_same_weights(scenes_file, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        train(scenes_file, tmp_path / name, "--epochs", "1", "--seed", seed, "--deterministic")
    torch.use_deterministic_algorithms(False)
    a, b, c = ((tmp_path / name / "lstm_best.pt").read_bytes() for name in "abc")
    assert len(a) == len(b)
    a, b, c = (load_checkpoint(tmp_path / name / "lstm_best.pt").weights for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a) and not torch.equal(a["cell.Wx"], c["cell.Wx"])
