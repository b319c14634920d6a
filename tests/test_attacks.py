"""What attackers have found: the short form of tests/endurance/stranger.py, and a test for every single finding."""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import run_test, run_train, tiny_captioner
from PIL import Image

from rnn_lstm_captioning import InputError, TrainingSettings, load_captioner, load_captions, score_captions
from rnn_lstm_captioning.cells.losses import projected_softmax_loss, temporal_softmax_loss
from rnn_lstm_captioning.commands import build, inspecting, train
from rnn_lstm_captioning.commands.arguments import ArgumentParser
from rnn_lstm_captioning.data.images import find_images, load_image
from rnn_lstm_captioning.data.readers import read_captions
from rnn_lstm_captioning.model.captioner import evaluating
from rnn_lstm_captioning.model.checkpoint import load_checkpoint
from rnn_lstm_captioning.model.decoding import Decoding
from rnn_lstm_captioning.storage import is_running, only_one
from rnn_lstm_captioning.text import printable
from rnn_lstm_captioning.training import distributed
from rnn_lstm_captioning.training.features import FeaturePass
from rnn_lstm_captioning.training.settings import DataSettings
from tests.endurance.stranger import legacy

SMALL = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 8 --wordvec-dim 4 --batch-size 16 --quiet"
SMALL = [*SMALL.split(), "--device", "cpu"]


@pytest.fixture
def here(tmp_path, scenes_file, monkeypatch):
    """An empty current folder with x.pt, and a short way to train."""
    shutil.copy(scenes_file, tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go(epochs, *flags):
    run_train("lstm", ["--data", "x.pt", *SMALL, "--epochs", str(epochs), *flags])


def weights(path):
    return torch.cat([tensor.flatten().float() for tensor in load_checkpoint(path).weights.values()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the programs are forked")
def test_a_stranger_finds_nothing():
    """Each kind of attack of tests/endurance/stranger.py that takes no seconds."""
    kinds = ["memory layouts", "changed in place before the backward pass", "a gradient of a gradient", "bombs"]
    kinds += ["changed in place after the cell", "odd arguments of a cell", "odd arguments of a captioner"]
    kinds += ["a file that is none", "odd places for the results", "odd numbers in flags", "names of files"]
    kinds += ["weights that are no numbers", "odd settings in a checkpoint", "text of every script"]
    command = [sys.executable, "-m", "tests.endurance.stranger", "--attempts", "90", "--seed", "11", "--kind", *kinds]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| all | 90 | 0 |" in result.stdout


# ------------------------------------------------------------------------------ runs in a folder


def test_a_run_that_is_continued_in_another_folder_keeps_the_run_that_is_there(here, capsys):
    go(1, "--out", "a", "--seed", "1")
    go(1, "--out", "b", "--seed", "2")
    best = weights("b/lstm_best.pt")
    go(2, "--out", "b", "--seed", "1", "--resume", "a/lstm_last.pt")
    assert torch.equal(weights("b/lstm_best_before.pt"), best) and (here / "b/lstm_log_before.csv").exists()
    assert "the files of an earlier run were renamed to" in capsys.readouterr().out
    assert load_checkpoint("b/lstm_best.pt").settings["seed"] == 1


@pytest.mark.parametrize("way", ["{here}/cv/lstm_last.pt", "cv/../cv/lstm_last.pt", "link/lstm_last.pt"])
def test_a_run_is_the_same_whatever_path_leads_to_it(way, here, monkeypatch):
    go(1)
    (here / "link").symlink_to("cv")
    score = {1: 50.0, 2: 10.0}  # the first epoch stays the best one
    monkeypatch.setattr("rnn_lstm_captioning.training.trainer.selection_score", lambda row, _: score[row["epoch"]])
    best = weights("cv/lstm_best.pt")
    go(2, "--resume", way.format(here=here))
    assert torch.equal(weights("cv/lstm_best.pt"), best) and not list(here.glob("cv/*before*"))


@pytest.mark.parametrize("change", ["pictures", "captions", "twice"])
def test_a_run_is_not_continued_with_other_data(change, here):
    go(1)
    data = torch.load("x.pt", weights_only=True)
    if change == "pictures":
        data["train_images"] = data["train_images"].flip(0)
    elif change == "captions":
        data["train_image_index"] = data["train_image_index"].flip(0)
    else:
        for key in ("captions", "image_index"):
            data[f"train_{key}"] = torch.cat([data[f"train_{key}"]] * 2)
    torch.save(data, "x.pt")
    with pytest.raises(InputError, match="was trained on other data than x.pt holds now: .* use --init"):
        go(2, "--resume")


def test_copied_data_is_the_same_data(here):
    go(1)
    shutil.copy("x.pt", "y.pt")
    os.utime("y.pt", (5, 5))
    run_train("lstm", ["--data", "y.pt", *SMALL, "--epochs", "2", "--resume"])


def test_only_one_run_can_write_into_a_folder(here):
    code = "from rnn_lstm_captioning.storage import only_one\nwith only_one('cv/.lstm.lock', 'training'):\n"
    code += "    print('inside', flush=True)\n    input()"
    command = [sys.executable, "-c", code]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment, text=True) as other:
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(InputError, match="another process is training the lstm into cv: wait until it ends"):
            go(1)
        other.kill()
    go(1)  # a lock does not outlive its process
    assert not list(here.glob("cv/.*"))


def test_init_and_resume_together_are_refused(here):
    with pytest.raises(InputError, match="use one of them"):
        go(1, "--init", "a.pt", "--resume", "b.pt")


def test_flags_that_differ_between_processes_are_named(here, monkeypatch):
    args = train.train_flags("lstm").parse_args(["--learning-rate", "0.1", "--out", "a"])
    chosen = train.choose_cell(None, "lstm")

    def gather(mine):
        return [mine | {"learning_rate": 0.2, "out": True, "clip": mine["clip"]}, mine]

    monkeypatch.setattr(distributed, "all_gather", gather)
    with pytest.raises(InputError, match=r"different values of --learning-rate \(0.2 and 0.1\)"):
        train.check_agreement(args, chosen)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [mine, dict(mine)])
    train.check_agreement(args, chosen)


# --------------------------------------------------------------------- results never replace an input


@pytest.fixture
def pictures(here):
    (here / "p").mkdir()
    for k in range(6):
        Image.new("RGB", (40, 40), (40 * k, 0, 0)).save(here / f"p/{k}.png")
    rows = "".join(f"{k}.png,a dog number {k} runs\n" for k in range(6))
    (here / "x_report.txt").write_text("image,caption\n" + rows)
    (here / "c.csv").write_text("image,caption\n" + rows)
    return here


def construct(*flags):
    build.main(["--images", "p", "--size", "32", "--word-threshold", "1", *flags])


def test_a_build_replaces_nothing_that_it_reads(pictures):
    with pytest.raises(InputError, match="x_report.txt would be overwritten, but the command reads it"):
        construct("--captions", "x_report.txt", "--out", "x.pt")
    shutil.copy("p/0.png", "p/z_sheet.png")
    before = (pictures / "p/z_sheet.png").read_bytes()
    with pytest.raises(InputError, match="z_sheet.png would be overwritten"):
        construct("--captions", "c.csv", "--out", "p/z.pt")
    assert (pictures / "p/z_sheet.png").read_bytes() == before
    assert "a dog number 5" in (pictures / "x_report.txt").read_text()


def test_a_build_that_failed_does_not_keep_the_pixels_of_images_that_changed(pictures):
    (pictures / "s_sheet.png").mkdir()  # the build fails after the images are read
    with pytest.raises(OSError):
        construct("--captions", "c.csv", "--out", "s.pt")
    time.sleep(0.01)
    for k in range(6):
        Image.new("RGB", (40, 40), (0, 255, 0)).save(f"p/{k}.png")
    (pictures / "s_sheet.png").rmdir()
    construct("--captions", "c.csv", "--out", "s.pt")
    images = load_captions("s.pt").splits["train"].images
    assert images[:, 0].max() == 0 and images[:, 1].min() == 255


def test_figures_replace_no_image_and_no_checkpoint(trained_cells, here):
    best = str(trained_cells / "lstm_best.pt")
    (here / "out").mkdir()
    shutil.copy(trained_cells / "photo.png", "out/a_0.png")
    (here / "a.png").symlink_to("out/a_0.png")
    with pytest.raises(InputError, match="a_0.png would be overwritten"):
        run_test("lstm", ["--checkpoint", best, "--image", "a.png", "--out", "out"])
    shutil.copy(best, "out/gradients.json")
    with pytest.raises(InputError, match="gradients.json would be overwritten"):
        inspecting.main(["--checkpoint", "out/gradients.json", "--gradients", "--steps", "3", "--out", "out"])
    shutil.copy(best, "m.safetensors")
    with pytest.raises(InputError):
        run_test("lstm", ["--checkpoint", "m.safetensors", "--export", "m.safetensors"])


# ----------------------------------------------------------------------------------- the library


def test_the_fast_loss_checks_the_words_as_the_plain_one_does():
    h, W, b = torch.randn(2, 3, 4), torch.randn(4, 9), torch.randn(9)
    y = torch.randint(9, (2, 3))
    for wrong in (y[:, :2], y[:1], y.T, y.int(), y.tolist()):
        for loss in (lambda y: projected_softmax_loss(h, y, W, b), lambda y: temporal_softmax_loss(h @ W + b, y)):
            with pytest.raises((TypeError, ValueError), match="^y "):
                loss(wrong)
    for empty in (h[:0], h[:, :0]):
        with pytest.raises(ValueError, match="^[hx] has shape"):
            projected_softmax_loss(empty, y[: len(empty), : empty.shape[1]], W, b)
    with pytest.raises(TypeError, match="ignore_index"):
        temporal_softmax_loss(h @ W, y, ignore_index=1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_of_many_captions_is_summed_in_float32(dtype):
    h, W, b = torch.randn(3000, 8, 4), torch.randn(4, 9), torch.randn(9)
    y = torch.randint(9, (3000, 8))
    ours = projected_softmax_loss(*(t.to(dtype) if t.is_floating_point() else t for t in (h, y, W, b)))
    assert ours == pytest.approx(projected_softmax_loss(h, y, W, b).item(), rel=1e-2)


def test_evaluating_gives_every_part_its_mode_back():
    model = tiny_captioner("lstm").train()
    model.dropout.eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert model.training and not model.dropout.training and model.cell.training


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingSettings(clip=-1.0),
        lambda: TrainingSettings(clip=float("nan")),
        lambda: TrainingSettings(weight_decay=float("inf")),
        lambda: TrainingSettings(patience=-3),
        lambda: TrainingSettings(epochs=1.5),
        lambda: DataSettings(num_train=0),
        lambda: FeaturePass(batch_size=-1),
        lambda: Decoding(length_penalty=400.0),
        lambda: Decoding(beam=10**6),
        lambda: Decoding(max_length=2**31),
        lambda: Decoding(beam=2.0),
        lambda: tiny_captioner("lstm", dropout=float("nan")),
    ],
)
def test_settings_that_can_not_be_used_are_refused(make):
    with pytest.raises(InputError, match="wanted"):
        make()


def test_a_whole_number_as_length_penalty_is_the_same_number():
    assert Decoding(length_penalty=2) == Decoding(length_penalty=2.0)
    assert isinstance(Decoding(length_penalty=2).length_penalty, float)


def test_references_that_are_no_lists_are_refused():
    with pytest.raises(ValueError, match="list of lists of strings"):
        score_captions(["a dog", "a cat"], ["a dog", "a cat"])
    with pytest.raises(ValueError, match="must be a list of strings"):
        score_captions("ab", [["a"], ["b"]])


def test_odd_images_are_refused():
    for odd in (None, 5, torch.zeros(3, 4, 4), Image.new("F", (9, 9), 0.5), Image.new("RGB", (0, 0))):
        with pytest.raises(ValueError):
            load_image(odd, 32)
    if sys.version_info >= (3, 13):  # there "**x" means "*x"
        assert find_images(["**x"]) == []
    else:
        with pytest.raises(InputError, match="not a valid pattern"):
            find_images(["**x"])


def test_an_image_of_many_pixels_looks_like_a_small_one(tmp_path):
    small = Image.linear_gradient("L").resize((500, 500))
    small.resize((6000, 6000)).save(tmp_path / "large.png")
    small.save(tmp_path / "small.png")
    large, small = (load_image(tmp_path / f"{name}.png", 64).float() for name in ("large", "small"))
    assert (large - small).abs().max() < 4


# ------------------------------------------------------------------------------------- the files


def read(tmp_path, text, name="c.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    report = []
    return read_captions(tmp_path / name, report)[0], report


def test_a_quote_that_takes_in_the_next_lines_is_named(tmp_path):
    rows = [f"{k}.png,a dog runs {k}" for k in range(9)]
    rows[3] = '3.png,"a dog runs'
    with pytest.raises(InputError, match="a quote that ends before line .* opens too early"):
        read(tmp_path, "image,caption\n" + "\n".join(rows))


def test_a_pipe_file_without_a_header_keeps_its_first_caption(tmp_path):
    lines = [f"{k}.png| 0| a dog {k}" for k in range(3)]
    assert len(read(tmp_path, "\n".join(lines))[0]) == 3
    assert len(read(tmp_path, "\n".join(["image_name| comment_number| comment", *lines]))[0]) == 3


def test_only_line_ends_end_a_line(tmp_path):
    found, _ = read(tmp_path, "a.jpg#0\ta dog\u2028runs\x0c fast\r\nb.jpg#0\ta cat\n")
    assert found == {"a.jpg": ["a dog\u2028runs\x0c fast"], "b.jpg": ["a cat"]}
    found, _ = read(tmp_path, "image,caption\r\na.jpg,a dog\x0cruns\r\nb.jpg,a cat")
    assert found == {"a.jpg": ["a dog\x0cruns"], "b.jpg": ["a cat"]}


def test_two_spellings_of_a_name_are_one_image(tmp_path):
    assert read(tmp_path, "image,caption\n./a.jpg,a dog\na.jpg,a cat\nb//c.jpg,a bird")[0] == {
        "a.jpg": ["a dog", "a cat"],
        "b/c.jpg": ["a bird"],
    }


def test_more_columns_are_not_a_part_of_the_caption(tmp_path):
    found, _ = read(tmp_path, "split,caption,image\ntrain,a dog,a.jpg\nval,a cat,b.jpg\nval,a,b,c.jpg")
    assert found == {"a.jpg": ["a dog"], "b.jpg": ["a cat"]}


def test_half_a_character_does_not_stop_a_build(tmp_path):
    images = [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "a dog \ud800 runs"}, {"raw": 5}]}]
    found, report = read(tmp_path, json.dumps({"images": images}), "c.json")
    assert found == {"a.jpg": ["a dog ? runs"]} and "captions that are not text: 1" in report


def test_the_same_images_for_training_and_validation_are_refused(pictures):
    with pytest.raises(InputError, match="6 images are in both files of captions, such as"):
        construct("--captions", "c.csv", "--val-captions", "c.csv", "--out", "y.pt")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the address space is in /proc")
def test_tiny_files_take_no_memory(tmp_path, scenes_file):
    def peak():
        return int(re.search(r"VmPeak:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1])

    bytes_of_any_size = b"c__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", 15 * 10**8) + b"\x85R"
    bombs = [
        legacy(b"\x80\x02}r\xff\xff\xff\x0f."),  # room for 268 million values in the pickle's memo
        legacy(b"\x80\x02" + bytes_of_any_size + b".") + scenes_file.read_bytes(),  # two files in one
    ]
    for bomb in bombs:
        (tmp_path / "x.pt").write_bytes(bomb)
        before = peak()
        for use in (load_captions, lambda path: load_captioner(path, "cpu")):
            with pytest.raises(InputError):
                use(tmp_path / "x.pt")
        assert peak() - before < 1e6  # kB


def test_a_large_file_that_is_no_model_is_not_read(tmp_path):
    for start in (b"", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 10**9)):
        with open(tmp_path / "x.safetensors", "wb") as file:
            file.write(start)
            try:
                file.truncate(20 * 10**9)
            except OSError:
                pytest.skip("this file system has no sparse files of this size")
        with pytest.raises(InputError, match="x.safetensors is not a checkpoint that can be read safely"):
            load_captioner(tmp_path / "x.safetensors", "cpu")


def test_a_name_of_another_process_may_be_odd():
    assert is_running(str(os.getpid())) and is_running("²") and not is_running("9" * 25)


def test_argument_files_that_name_each_other_are_refused(tmp_path, capsys):
    for k in range(12):
        (tmp_path / f"f{k}").write_text(f"@{tmp_path}/f{k + 1} " * 10 if k < 11 else "")
    with pytest.raises(SystemExit):
        ArgumentParser().parse_args([f"@{tmp_path}/f0"])
    assert "it names itself, or too many others" in capsys.readouterr().err


# ------------------------------------------------------------------------------- text and streams


def test_what_is_printed_can_not_control_a_terminal():
    odd = "a\x1b[2J\nb\u202ec\x00\u2028\ud800 ünï 一 e\u0301 \u200d"
    assert printable(odd) == "a\\x1b[2J\\nb\\u202ec\\x00\\u2028\\ud800 ünï 一 e\u0301 \u200d"
    numbers = random.Random(0)
    for _ in range(300):
        text = printable("".join(chr(numbers.randrange(0x2100)) for _ in range(40)))
        assert text.encode() and not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_output_is_an_error_and_a_full_error_output_is_none(here):
    root = Path(__file__).parents[1]
    for script in ([str(root / "train_lstm.py"), "--help"], ["-m", "rnn_lstm_captioning", "--help"]):
        with open("/dev/full", "w", encoding="utf-8") as full:
            environment = os.environ | {"PYTHONPATH": str(root)}
            command = [sys.executable, *script]
            result = subprocess.run(command, stdout=full, stderr=-1, text=True, env=environment)
            assert result.returncode == 1 and "the output could not be written" in result.stderr
            assert "Traceback" not in result.stderr
            wrong = subprocess.run(
                [sys.executable, script[0], *script[1:-1], "--nonsense"], stderr=full, env=environment
            )
            assert wrong.returncode == 2


def test_variables_that_torchrun_left_do_not_silence_a_command(trained_cells):
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "test_lstm.py"), "--checkpoint", str(trained_cells / "lstm_best.pt")]
    command += ["--image", str(trained_cells / "photo.png")]
    left = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | left)
    assert result.returncode == 0 and "photo.png: " in result.stdout


def test_help_and_wrong_flags_do_not_wait_for_torch():
    code = "import sys\nfrom rnn_lstm_captioning.commands.flags import PARSERS\n"
    code += "for make in PARSERS.values(): make().format_help()\nprint('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_locks_are_released_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), only_one(tmp_path / ".lock", "testing"):
            raise KeyError
    assert not list(tmp_path.iterdir())
