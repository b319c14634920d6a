"""The six scripts, from arguments to files and exit codes."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from helpers import CELLS, run_test, run_train
from PIL import Image

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.commands.arguments import ArgumentParser
from rnn_lstm_captioning.commands.common import run_command, script_for
from rnn_lstm_captioning.data.scenes import make_scenes
from rnn_lstm_captioning.errors import RunFailed
from rnn_lstm_captioning.model.checkpoint import load_checkpoint, restore_captioner
from rnn_lstm_captioning.training import batches, trainer

SMALL = "--hidden-dim 16 --wordvec-dim 8 --encoder-weights none --batch-size 16 --quiet --device cpu".split()


def train(cell, scenes_file, out, *extra):
    run_train(cell, ["--data", str(scenes_file), "--out", str(out), *SMALL, *extra])


@pytest.fixture(scope="module", params=CELLS)
def trained(request, scenes_file, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    train(request.param, scenes_file, out, "--epochs", "2", "--dropout", "0", "--feature-dropout", "0")
    return request.param, out


def test_training_writes_checkpoints_log_and_curve(trained):
    cell, out = trained
    assert {p.name for p in out.iterdir()} == {f"{cell}_{x}" for x in ("last.pt", "best.pt", "log.csv", "loss.png")}
    with open(out / f"{cell}_log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and rows[1]["step"] == "6"
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    checkpoint = load_checkpoint(out / f"{cell}_best.pt")
    assert checkpoint.cell == cell and checkpoint.stored_size == 112 and checkpoint.training is None
    assert checkpoint.settings["epochs"] == 2


def test_evaluation_prints_loss_and_draws_samples(trained, tmp_path, capsys):
    cell, out = trained
    run_test(cell, ["--checkpoint", str(out / f"{cell}_last.pt"), "--out", str(tmp_path), "--num-samples", "2"])
    printed = capsys.readouterr().out
    with open(out / f"{cell}_log.csv", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    words = printed.split("loss ")[1].split()
    assert float(words[0]) == pytest.approx(float(last["val_loss"]), rel=2e-3)
    assert "val: 20 captions of 4 images" in printed and "(true: " in printed
    expected = {f"{split}_{k}.png" for split in ("train", "val") for k in range(2)}
    names = {p.name for p in tmp_path.iterdir()}
    assert expected <= names
    assert all(("attention" in name) == (name not in expected) for name in names)


def test_metrics_and_baselines_are_printed_and_written(trained, tmp_path, capsys):
    cell, out = trained
    checkpoint = ["--checkpoint", str(out / f"{cell}_best.pt"), "--out", str(tmp_path), "--num-samples", "0"]
    run_test(cell, [*checkpoint, "--metrics", "--baselines", "--beam", "2"])
    printed = capsys.readouterr().out
    assert "val: 4 images, 5 references each; decoding: max_length 15, beam 2, length_penalty 1.0" in printed
    assert "length_penalty 1.0, no_repeats, no_bad_endings\n" in printed
    for row in ("the model", "for every image", "the nearest training image's caption", "one human caption"):
        assert row in printed
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert len(result["images"]) == 4 and len(result["images"][0]["references"]) == 5
    assert result["scores"]["the model"]["CIDEr"] == pytest.approx(sum(i["CIDEr"] for i in result["images"]) / 4)
    assert f"{result['scores']['the model']['BLEU-4']:.1f}" in printed
    human = result["scores"]["one human caption against the others"]
    assert human["CIDEr"] > result["scores"]["the model"]["CIDEr"]  # after two epochs


def test_scores_with_one_reference_per_image_come_with_a_warning(scenes_file, tmp_path, capsys):
    data = torch.load(scenes_file, weights_only=True)
    for split in ("train", "val"):
        first = [(data[f"{split}_image_index"] == k).nonzero()[0].item() for k in range(len(data[f"{split}_images"]))]
        data[f"{split}_captions"] = data[f"{split}_captions"][first]
        del data[f"{split}_image_index"], data[f"{split}_references"]  # as in the course's coco.pt
    torch.save(data, tmp_path / "coco.pt")
    train("rnn", tmp_path / "coco.pt", tmp_path, "--epochs", "1")
    log = (tmp_path / "rnn_log.csv").read_text()
    assert "cider" not in log
    capsys.readouterr()
    run_test("rnn", ["--checkpoint", str(tmp_path / "rnn_best.pt"), "--out", str(tmp_path), "--metrics"])
    assert "one reference per image: these scores are far below" in capsys.readouterr().out


def test_patience_ends_a_run_and_the_best_epoch_is_reported(scenes_file, tmp_path, monkeypatch, capsys):
    ciders = iter([10.0, 30.0, 20.0, 25.0, 99.0])
    monkeypatch.setattr(trainer, "validation_cider", lambda *_: next(ciders))
    train("rnn", scenes_file, tmp_path, "--epochs", "9", "--patience", "2")
    assert "epoch 2: " in capsys.readouterr().out
    with open(tmp_path / "rnn_log.csv", encoding="utf-8") as file:
        assert [row["val_cider"] for row in csv.DictReader(file)] == ["10", "30", "20", "25"]


def test_the_best_epoch_can_be_the_one_with_the_lowest_loss(scenes_file, tmp_path, monkeypatch, capsys):
    ciders = iter([30.0, 10.0, 20.0])
    monkeypatch.setattr(trainer, "validation_cider", lambda *_: next(ciders))
    train("rnn", scenes_file, tmp_path, "--epochs", "3", "--best-by", "loss")
    with open(tmp_path / "rnn_log.csv", encoding="utf-8") as file:
        losses = [float(row["val_loss_per_word"]) for row in csv.DictReader(file)]
    best = losses.index(min(losses)) + 1
    assert best > 1  # by CIDEr it is the first
    assert f"rnn_best.pt, epoch {best}: " in capsys.readouterr().out


def test_images_are_captioned_without_data(trained, tmp_path, capsys):
    cell, out = trained
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "blue.jpg")
    Image.new("L", (50, 60), 80).save(tmp_path / "gray.png")
    (tmp_path / "damaged.jpg").write_text("no")
    with pytest.raises(RunFailed, match="1 of 3 images could not be read; the others are captioned"):
        run_test(cell, ["--checkpoint", str(out / f"{cell}_best.pt"), "--image", str(tmp_path)])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / "blue.jpg"), str(tmp_path / "gray.png")]
    assert "damaged.jpg" in captured.err
    with pytest.raises(InputError, match="none of the images could be read"):
        run_test(cell, ["--checkpoint", str(out / f"{cell}_best.pt"), "--image", str(tmp_path / "damaged.jpg")])


def test_sampled_captions_of_a_data_set_repeat_with_their_seed(trained, tmp_path, capsys):
    cell, out = trained
    flags = ["--checkpoint", str(out / f"{cell}_best.pt"), "--out", str(tmp_path), "--num-samples", "2"]
    printed = []
    for seed in ("4", "4", "5"):
        run_test(cell, [*flags, "--temperature", "3", "--seed", seed])
        printed.append(re.findall(r"^(?:train|val) \d+: .*", capsys.readouterr().out, re.MULTILINE))
    assert len(printed[0]) == 4 and printed[0] == printed[1] != printed[2]


def test_json_keeps_the_order_of_the_input(trained, tmp_path, capsys):
    cell, out = trained
    (tmp_path / "b.png").write_text("no image")
    for name in ("a", "c"):
        Image.new("RGB", (30, 20), "blue").save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / name) for name in ("c.png", "b.png", "a.png", "c.png")]
    with pytest.raises(RunFailed, match="1 of 4"):
        run_test(cell, ["--checkpoint", str(out / f"{cell}_best.pt"), "--json", "--image", *paths])
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == paths
    assert [("caption" in result) for result in results] == [True, False, True, True]


def test_image_patterns_and_search_flags_work_and_contradictory_flags_are_refused(trained, tmp_path, capsys):
    cell, out = trained
    for name in ("a", "b"):
        Image.new("RGB", (30, 20), "blue").save(tmp_path / f"{name}.png")
    checkpoint = ["--checkpoint", str(out / f"{cell}_best.pt"), "--image", f"{tmp_path}/*.png", f"{tmp_path}/none*.png"]
    run_test(cell, [*checkpoint, "--json", "--beam", "3"])
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == [str(tmp_path / f"{name}.png") for name in ("a", "b")]
    assert results[0]["caption"] == results[1]["caption"] and results[0]["log_prob"] <= 0
    run_test(cell, [*checkpoint, "--top-k", "5", "--seed", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(InputError, match="beam can't be combined with"):
        run_test(cell, [*checkpoint, "--top-k", "5", "--beam", "3"])
    with pytest.raises(InputError, match="--metrics, --baselines and --results are for"):
        run_test(cell, [*checkpoint, "--metrics"])
    with pytest.raises(InputError, match="there are no images in"):
        run_test(cell, [*checkpoint[:2], "--image", f"{tmp_path}/none*.png"])


def test_two_runs_with_length_batches_and_augmentation_are_identical(scenes_file, tmp_path):
    settings = ["--batching", "length", "--augment", "--image-norm", "batchnorm", "--image-input", "first-token"]
    train("rnn", scenes_file, tmp_path / "first", "--epochs", "2", *settings)
    train("rnn", scenes_file, tmp_path / "second", "--epochs", "2", *settings)
    first, second = (load_checkpoint(tmp_path / name / "rnn_last.pt") for name in ("first", "second"))
    assert first.settings["image_size"] == 98 and first.stored_size == 112
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_augmented_images_that_are_smaller_than_wanted_are_mirrored_and_enlarged(scenes_file, tmp_path, monkeypatch):
    sizes = set()
    crops = batches.random_crops
    monkeypatch.setattr(batches, "random_crops", lambda images, size: sizes.add(size) or crops(images, size))
    train("rnn", scenes_file, tmp_path, "--augment", "--image-size", "128", "--num-train", "8")
    assert sizes == {112}  # the side of the stored images: nothing is cut off
    assert load_checkpoint(tmp_path / "rnn_best.pt").settings["image_size"] == 128


def test_a_checkpoint_of_another_cell_is_refused_and_the_right_script_is_named(trained):
    cell, out = trained
    other = "lstm" if cell != "lstm" else "attn"
    with pytest.raises(InputError, match=f"use {script_for('test', cell)} --checkpoint"):
        run_test(other, ["--checkpoint", str(out / f"{cell}_best.pt")])


def test_data_with_another_vocabulary_is_refused(trained, tmp_path):
    cell, out = trained
    data = make_scenes(num_train=2, num_val=1, seed=5)
    torch.save(data, tmp_path / "other.pt")
    with pytest.raises(InputError, match="another vocabulary"):
        run_test(cell, ["--checkpoint", str(out / f"{cell}_best.pt"), "--data", str(tmp_path / "other.pt")])


@pytest.mark.parametrize("step", [5, 6])  # inside an epoch, and at the end of one
def test_an_interrupted_run_resumes_to_the_same_weights(step, scenes_file, tmp_path, monkeypatch):
    train("lstm", scenes_file, tmp_path / "whole", "--epochs", "3")
    show, calls = trainer.Trainer.show_progress, []

    def interrupt(self, *args):
        show(self, *args)
        calls.append(1)
        if len(calls) == step:
            import signal

            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "show_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("lstm", scenes_file, tmp_path / "parts", "--epochs", "3")
    assert load_checkpoint(tmp_path / "parts/lstm_last.pt").training["step"] == step
    train("lstm", scenes_file, tmp_path / "parts", "--epochs", "3", "--resume")
    whole, parts = (load_checkpoint(tmp_path / name / "lstm_last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)
    losses = [[row["val_loss"] for row in checkpoint.training["history"]] for checkpoint in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_finetuning_changes_the_encoder_and_the_checkpoint_contains_it(scenes_file, tmp_path):
    torch.save(torchvision.models.regnet_x_400mf(weights=None).state_dict(), tmp_path / "w.pth")
    for weights in ("none", str(tmp_path / "w.pth")):
        train("rnn", scenes_file, tmp_path, "--epochs", "1", "--finetune-encoder", "--encoder-weights", weights)
        standardized = load_checkpoint(tmp_path / "rnn_last.pt").weights["feature_mean"].any()
        assert standardized == (weights != "none")
    checkpoint = load_checkpoint(tmp_path / "rnn_last.pt")
    captioner = restore_captioner(checkpoint, "x")
    assert captioner.image_encoder.cnn[0][1].running_mean.any()
    assert not captioner.training
    restored = captioner.state_dict()  # the statistics of BatchNorm too
    assert all(torch.equal(tensor, restored[name]) for name, tensor in checkpoint.weights.items())
    with pytest.raises(InputError, match="--encoder-learning-rate need --finetune-encoder"):
        train("rnn", scenes_file, tmp_path, "--epochs", "1", "--freeze-batchnorm")


def test_a_part_of_the_cnn_is_trained_with_its_own_learning_rate_and_the_run_resumes_exactly(scenes_file, tmp_path):
    flags = "--finetune-encoder --finetune-from trunk_output.block4 --freeze-batchnorm --encoder-learning-rate 1e-4"
    flags += " --schedule constant --encoder-weights none --augment"

    def run(out, *extra):
        train("rnn", scenes_file, tmp_path / out, *flags.split(), *extra)
        return load_checkpoint(tmp_path / out / "rnn_last.pt").weights

    first, whole = run("parts", "--epochs", "1"), run("whole", "--epochs", "2")
    parts = run("parts", "--epochs", "2", "--resume")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    changed = {
        name for name in whole if name.startswith("image_encoder.") and not torch.equal(first[name], whole[name])
    }
    assert changed and all(".block4." in name and ".running_" not in name for name in changed)


def test_a_dry_run_writes_only_into_its_own_folder(scenes_file, tmp_path, capsys):
    before = set(scenes_file.parent.iterdir())
    train("attn", scenes_file, tmp_path, "--dry-run", "--epochs", "50", "--batch-size", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["dry-run"]
    assert set(scenes_file.parent.iterdir()) == before
    assert load_checkpoint(tmp_path / "dry-run/attn_last.pt").training["step"] <= 4


def test_training_in_bf16_keeps_float32_weights(scenes_file, tmp_path):
    train("attn", scenes_file, tmp_path, "--epochs", "1", "--precision", "bf16")
    assert load_checkpoint(tmp_path / "attn_last.pt").weights["cell.Wx"].dtype == torch.float32


def test_a_nonfinite_loss_stops_the_run(scenes_file, tmp_path):
    with pytest.raises(RuntimeError, match="step .*: the loss is .*--learning-rate"):
        train("rnn", scenes_file, tmp_path, "--epochs", "9", "--learning-rate", "1e30", "--clip", "0")


def test_arguments_are_read_from_a_file(tmp_path):
    (tmp_path / "x.args").write_text("--epochs 3 --name 'two words'  # why\n\n# a comment\n--flag\n")
    parser = ArgumentParser()
    (
        parser.add_argument("--epochs", type=int),
        parser.add_argument("--name"),
        parser.add_argument("--flag", action="store_true"),
    )
    args = parser.parse_args([f"@{tmp_path}/x.args", "--epochs", "4"])
    assert (args.epochs, args.name, args.flag) == (4, "two words", True)


@pytest.mark.parametrize(
    "error, code",
    [(None, 0), (OSError("disk full"), 1), (InputError("no"), 2), (KeyboardInterrupt(), 130)],
)
def test_every_kind_of_error_has_its_exit_code(error, code, capsys):
    def main():
        if error:
            raise error

    if code == 0:
        return run_command(main)
    with pytest.raises(SystemExit) as exit:
        run_command(main)
    assert exit.value.code == code and capsys.readouterr().err


def run_script(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=100)


def test_scripts_report_wrong_input_in_one_line_with_exit_code_2(tmp_path):
    missing = run_script("test_lstm.py", "--checkpoint", tmp_path / "none.pt")
    assert missing.returncode == 2 and missing.stderr.startswith("test_lstm.py: ") and missing.stderr.count("\n") == 1
    unknown = run_script("train_lstm_attention.py", "--epoch", "3")
    assert unknown.returncode == 2 and "unrecognized arguments: --epoch 3" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
    both = run_script("train_rnn.py", "--download", "--data", tmp_path / "none.pt")
    assert both.returncode == 2 and "leave out --data" in both.stderr
    data = run_script("train_rnn.py", "--data", tmp_path / "none.pt")
    assert data.returncode == 2 and "there is no such caption file" in data.stderr


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm_attention"])
def test_every_script_prints_its_help(name):
    for script in (f"train_{name}.py", f"test_{name}.py"):
        result = run_script(script, "--help")
        assert result.returncode == 0 and "--" in result.stdout


# ------------------------------------------------------------------- bugs that were found in review


def test_resume_refuses_other_settings_and_uses_the_checkpoints_encoder(scenes_file, tmp_path):
    train("lstm", scenes_file, tmp_path / "a", "--epochs", "1")
    with pytest.raises(InputError, match=r"was trained with --seed 0, not 5: to resume, use --seed 0"):
        train("lstm", scenes_file, tmp_path / "a", "--epochs", "2", "--resume", "--seed", "5")
    with pytest.raises(InputError, match=r"was trained with --batch-size 16, not 4"):
        train("lstm", scenes_file, tmp_path / "a", "--epochs", "2", "--resume", "--batch-size", "4")
    before = load_checkpoint(tmp_path / "a/lstm_last.pt").weights
    # the flags name other weights: those of the checkpoint are used, also for the features
    torch.save(torchvision.models.regnet_x_400mf(weights=None).state_dict(), tmp_path / "w.pth")
    more = ["--encoder-weights", str(tmp_path / "w.pth")]
    train("lstm", scenes_file, tmp_path / "b", "--epochs", "2", "--resume", str(tmp_path / "a/lstm_last.pt"), *more)
    assert (tmp_path / "b/lstm_best.pt").exists()
    after = load_checkpoint(tmp_path / "b/lstm_last.pt")
    same = [name for name in before if name.startswith(("image_encoder", "feature_mean", "feature_std"))]
    assert same and all(torch.equal(before[name], after.weights[name]) for name in same)
    train("lstm", scenes_file, tmp_path / "whole", "--epochs", "2")
    loss = [load_checkpoint(path).training["history"][1]["val_loss"] for path in
            (tmp_path / "whole/lstm_last.pt", tmp_path / "b/lstm_last.pt")]  # fmt: skip
    assert abs(loss[0] - loss[1]) < 1  # the schedule was stretched, but the features are the same


def test_an_epoch_that_was_not_evaluated_is_evaluated_on_resume(scenes_file, tmp_path):
    train("rnn", scenes_file, tmp_path, "--epochs", "2")
    checkpoint = torch.load(tmp_path / "rnn_last.pt", weights_only=True)
    checkpoint["training"] |= {"history": [], "best": None, "step": 3}  # as if killed right after epoch 1's last step
    torch.save(checkpoint, tmp_path / "rnn_last.pt")
    train("rnn", scenes_file, tmp_path, "--epochs", "2", "--resume")
    assert [row["epoch"] for row in load_checkpoint(tmp_path / "rnn_last.pt").training["history"]] == [1, 2]


def test_training_works_on_captions_of_a_single_image(scenes_file, tmp_path):
    train("rnn", scenes_file, tmp_path, "--epochs", "1", "--num-train", "2")
    assert load_checkpoint(tmp_path / "rnn_last.pt").weights["cell.Wx"].isfinite().all()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--clip -1", "-1 is not 0 or more"),
        ("--weight-decay nan", "nan is not 0 or more"),
        ("--patience -3", "-3 is not 0 or more"),
        ("--seed 100000000000000000000", "is too large"),
        ("--batch-size 0", "0 is not above 0"),
        ("--warmup 1", "1 is not in [0, 1)"),
        ("--device meta", "device meta can't be used here"),
        ("@{folder}/quote.args", "quote.args can't be read: No closing quotation"),
        ("@{folder}/latin.args", "latin.args can't be read: 'utf-8' codec"),
        ("@{folder}/self.args", "an @FILE can't be read"),
    ],
)
def test_a_wrong_flag_gives_a_message_of_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "quote.args").write_text("--data it's.pt")
    (tmp_path / "latin.args").write_bytes("--data ä".encode("latin-1"))
    (tmp_path / "self.args").write_text(f"@{tmp_path}/self.args")
    with pytest.raises(SystemExit) as exit:
        run_train("rnn", flags.format(folder=tmp_path).split())
    printed = capsys.readouterr().err
    assert exit.value.code == 2 and message in printed and printed.count("\n") == 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_length_penalty_that_is_not_finite_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        run_test("rnn", ["--checkpoint", "x.pt", f"--length-penalty={value}"])
    assert f"{value} is not a finite number" in capsys.readouterr().err


def test_out_of_memory_gives_advice_and_exit_code_1(capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: torch.empty(10**15))
    assert exit.value.code == 1 and "use a smaller --batch-size" in capsys.readouterr().err


def test_a_finished_run_continues_only_with_more_epochs(scenes_file, tmp_path, capsys):
    train("rnn", scenes_file, tmp_path / "a", "--epochs", "1")
    train("rnn", scenes_file, tmp_path / "a", "--epochs", "1", "--resume")  # nothing to do
    assert "epoch 1:" in capsys.readouterr().out
    with pytest.raises(InputError, match="is finished; to continue it, give more --epochs"):
        train("rnn", scenes_file, tmp_path / "b", "--epochs", "1", "--resume", str(tmp_path / "a/rnn_last.pt"))
