"""Building a caption file, and loading single images."""

import csv
import io
import json
from shutil import _ntuple_diskusage as Usage

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.commands.build import main
from rnn_lstm_captioning.data import building as module
from rnn_lstm_captioning.data.caption_file import load_captions
from rnn_lstm_captioning.data.images import find_images, load_image, load_images, random_crops, try_to_load
from rnn_lstm_captioning.data.vocabulary import decode_captions
from rnn_lstm_captioning.errors import RunFailed


@pytest.fixture
def photos(tmp_path):
    """A folder with twelve images of one colour each, and a CSV with two captions for each of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with open(tmp_path / "captions.txt", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for k in range(12):
            Image.new("RGB", (60 + k, 50), (20 * k, 0, 255)).save(folder / f"{k}.png")
            writer.writerow([f"{k}.png", f"A picture, number {k} ."])
            writer.writerow([f"{k}.png", 'It "is" blue\nor so.'])
    return tmp_path


def build(photos, *extra):
    arguments = ["--images", photos / "photos", "--captions", photos / "captions.txt", "--out", photos / "x.pt"]
    main([str(argument) for argument in [*arguments, "--word-threshold", "1", "--size", "32", *extra]])
    return load_captions(photos / "x.pt")


def test_a_folder_and_a_csv_become_a_caption_file(photos):
    data = build(photos)
    train, val = data.splits["train"], data.splits["val"]
    assert (len(train.images), len(val.images)) == (11, 1) and len(train) == 22
    assert train.images.shape[1:] == (3, 32, 32)
    for split in (train, val):
        for name, image, row in zip(split.image_names, split.images, range(len(split.images))):
            k = int(name.removesuffix(".png"))
            assert torch.equal(image[:, 5, 5], torch.tensor([20 * k, 0, 255], dtype=torch.uint8))
            texts = decode_captions(split.captions[split.image_index == row], data.idx_to_word)
            assert texts[1] == "it is blue or so"
            if split is train:
                assert texts[0] == f"a picture number {k}"
    assert val.references == [[f"A picture, number {val.image_names[0][:-4]} .", 'It "is" blue\nor so.']]
    assert train.references is None
    report = (photos / "x_report.txt").read_text()
    assert "train: 22 captions, 0 cut after 15 words" in report
    names = ["captions.txt", "photos", "x.pt", "x_report.txt", "x_sheet.png"]
    assert sorted(p.name for p in photos.iterdir()) == names
    assert Image.open(photos / "x_sheet.png").width > 500


def test_lists_choose_the_splits_and_bad_images_are_named(photos):
    (photos / "photos/3.png").write_bytes(b"not an image")
    (photos / "photos/4.png").write_bytes((photos / "photos/4.png").read_bytes()[:60])
    (photos / "photos/5.png").unlink()
    (photos / "train.txt").write_text("\n".join(f"{k}.png" for k in range(8)))
    (photos / "val.txt").write_text("8.png\n9.png\n77.png\n")
    data = build(photos, "--train-list", photos / "train.txt", "--val-list", photos / "val.txt")
    assert data.splits["train"].image_names == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    assert data.splits["val"].image_names == ["8.png", "9.png"]
    report = (photos / "x_report.txt").read_text()
    assert "train: images that could not be used: 3\n  3.png: " in report and "  5.png: there is no such file" in report
    assert "val: images of the list without a caption: 1\n  77.png" in report


def coco_json(path, ids):
    images = [{"id": k, "file_name": f"{k}.png"} for k in ids]
    notes = [{"image_id": k, "caption": f"number {k}"} for k in ids]
    path.write_text(json.dumps({"images": images, "annotations": notes}))


def test_coco_is_built_from_a_file_and_a_folder_for_each_split(photos):
    coco_json(photos / "train.json", range(6))
    coco_json(photos / "val.json", range(6, 9))
    (photos / "val").mkdir()
    for k in range(6, 9):
        (photos / f"photos/{k}.png").rename(photos / f"val/{k}.png")
    files = ["--captions", photos / "train.json", "--val-captions", photos / "val.json", "--val-images", photos / "val"]
    data = build(photos, *files)
    assert data.splits["train"].image_names == [f"{k}.png" for k in range(6)]
    assert data.splits["val"].image_names == [f"{k}.png" for k in range(6, 9)]
    assert data.splits["val"].references[2] == ["number 8"]


def test_a_karpathy_file_gives_three_splits(photos):
    images = [
        {"filename": f"{k}.png", "split": split, "sentences": [{"raw": f"number {k}"}]}
        for k, split in enumerate(["train", "restval", "val", "test", "train"])
    ]
    (photos / "dataset.json").write_text(json.dumps({"images": images}))
    data = build(photos, "--captions", photos / "dataset.json")
    names = {split: part.image_names for split, part in data.splits.items()}
    assert names == {"train": ["0.png", "1.png", "4.png"], "val": ["2.png"], "test": ["3.png"]}
    assert data.splits["test"].references == [["number 3"]]


def test_an_interrupted_build_continues_where_it_stopped(photos, monkeypatch):
    names = [f"{k % 12}.png" for k in range(600)]  # more than two parts of 256
    for k in range(12, 600):
        (photos / f"photos/{k}.png").write_bytes((photos / f"photos/{names[k]}").read_bytes())
    (photos / "photos/40.png").write_bytes(b"damaged")
    (photos / "train.txt").write_text("\n".join(f"{k}.png" for k in range(590)))
    (photos / "val.txt").write_text("\n".join(f"{k}.png" for k in range(590, 600)))
    with open(photos / "captions.txt", "a", encoding="utf-8") as file:
        file.writelines(f"{k}.png,number {k}\n" for k in range(12, 600))
    lists = ["--train-list", photos / "train.txt", "--val-list", photos / "val.txt", "--workers", "2"]
    whole = build(photos, *lists)
    report = (photos / "x_report.txt").read_text()
    (photos / "x.pt").unlink()

    opened, try_to_load = [], module.try_to_load

    def interrupted(path, size):
        if path.name == "300.png":
            raise KeyboardInterrupt
        return try_to_load(path, size)

    def counting(path, size):
        opened.append(path.name)
        return try_to_load(path, size)

    monkeypatch.setattr(module, "try_to_load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(photos, *lists)
    assert not (photos / "x.pt").exists()
    monkeypatch.setattr(module, "try_to_load", counting)
    resumed = build(photos, *lists)
    assert len(opened) == 600 - 256 and "300.png" in opened and "40.png" not in opened
    assert (photos / "x_report.txt").read_text() == report and "  40.png: " in report
    for split in ("train", "val"):
        assert torch.equal(resumed.splits[split].images, whole.splits[split].images)
        assert resumed.splits[split].image_names == whole.splits[split].image_names
    assert not list(photos.glob(".x.pt*"))


def test_wrong_input_is_refused_and_leaves_no_files(photos, monkeypatch):
    def fails(message, *extra):
        with pytest.raises(InputError, match=message):
            build(photos, *extra)
        assert not (photos / "x.pt").exists() and not (photos / "x_report.txt").exists()

    fails("--images .*nowhere: there is no such folder", "--images", photos / "nowhere")
    fails("--captions .*none.txt: there is no such file", "--captions", photos / "none.txt")
    fails("give both --train-list and --val-list", "--train-list", photos / "captions.txt")
    fails("--val-fraction must lie between 0 and 1", "--val-fraction", "1.5")
    fails("--size must be at least 32", "--size", "8")
    fails("at most 1024", "--size", "100000")
    fails("--val-images needs --val-captions", "--val-images", photos / "photos")
    both = ["--val-captions", photos / "captions.txt", "--val-fraction", "0.5"]
    fails("use only one of --val-captions and --val-fraction", *both)
    (photos / "bad.json").write_text("{")
    fails("is neither a COCO nor a Karpathy captions JSON", "--captions", photos / "bad.json")
    (photos / "bad.csv").write_text("name;text\n")
    fails("the first line must be image,caption", "--captions", photos / "bad.csv")
    (photos / "empty.csv").write_text("image,caption\n")
    fails("holds no captions", "--captions", photos / "empty.csv")
    (photos / "other.csv").write_text("image,caption\na.jpg,hello\nb.jpg,hello\n")
    fails("none of the 1 train images could be read; the first: .*no such file", "--captions", photos / "other.csv")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(RunFailed, match="MB free, the build needs"):
        build(photos)
    monkeypatch.undo()
    (photos / "both.txt").write_text("1.png\n")
    fails(
        "1 images are in both lists, train and val, such as 1.png",
        "--train-list",
        photos / "both.txt",
        "--val-list",
        photos / "both.txt",
    )


def test_a_build_leaves_no_parts_behind_whatever_its_name(photos):
    arguments = ["--images", photos / "photos", "--captions", photos / "captions.txt", "--word-threshold", "1"]
    (photos / ".d1.pt.parts-0123").mkdir()  # of another build: [1] is not a pattern here
    for name in ("d[1].pt", "a*b?.pt"):
        main([str(argument) for argument in [*arguments, "--out", photos / name, "--size", "32"]])
        assert load_captions(photos / name).splits
    assert [path.name for path in photos.glob(".*")] == [".d1.pt.parts-0123"]


def test_the_captions_file_is_not_overwritten(photos):
    before = (photos / "captions.txt").read_bytes()
    with pytest.raises(InputError, match="--out .*captions.txt would overwrite the captions"):
        build(photos, "--out", photos / "captions.txt")
    assert (photos / "captions.txt").read_bytes() == before


# --------------------------------------------------------------------------------- single images


def test_images_of_every_mode_become_rgb(tmp_path):
    def colour_of(image, **options):
        path = tmp_path / f"x.{options.pop('format', 'png')}"
        image.save(path, **options)
        return load_image(path, 40)[:, 20, 20].int()

    orange = torch.tensor([250, 120, 10])
    rgb = Image.new("RGB", (70, 50), tuple(orange.tolist()))
    assert torch.equal(colour_of(rgb), orange)
    assert (colour_of(rgb, format="jpg") - orange).abs().max() < 6
    assert (colour_of(rgb.convert("CMYK"), format="jpg") - orange).abs().max() < 12
    assert (colour_of(rgb.quantize(8), format="gif") - orange).abs().max() < 6
    assert torch.equal(colour_of(Image.new("RGBA", (9, 9), (250, 120, 10, 0))), torch.tensor([255, 255, 255]))
    assert torch.equal(colour_of(Image.new("L", (9, 9), 77)), torch.tensor([77, 77, 77]))
    assert torch.equal(colour_of(Image.new("1", (9, 9), 1)), torch.tensor([255, 255, 255]))
    assert torch.equal(colour_of(Image.new("I;16", (9, 9), 0x8080)), torch.tensor([128, 128, 128]))
    assert torch.equal(colour_of(Image.new("LA", (1, 1), (50, 255))), torch.tensor([50, 50, 50]))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (80, 40), "black")
    image.paste((255, 255, 255), (0, 0, 40, 40))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise, so left becomes top
    image.save(tmp_path / "x.jpg", exif=exif)
    loaded = load_image(tmp_path / "x.jpg", 32).float()
    assert loaded[:, :12].mean() > 240 and loaded[:, 20:].mean() < 15


def test_most_images_with_a_damaged_exif_block_are_loaded(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    Image.new("RGB", (80, 40), "red").save(tmp_path / "x.jpg", exif=exif)
    data = (tmp_path / "x.jpg").read_bytes()
    start = data.index(b"Exif")
    used = 0
    for position in range(start, start + 60):
        for value in (0, 2, 9, 255):
            damaged = data[:position] + bytes([value]) + data[position + 1 :]
            image, reason = try_to_load(io.BytesIO(damaged), 16)
            assert (image is None) == (reason is not None)
            used += image is not None
    assert used > 200


def test_loading_an_image_object_does_not_change_it(tmp_path):
    Image.new("RGB", (800, 600), "red").save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert load_image(image, 32).shape == (3, 32, 32)
        assert image.size == (800, 600)


def test_a_dollar_in_a_caption_is_not_a_formula(photos):
    text = (photos / "captions.txt").read_text().replace("A picture", "$5_ and $% off, a picture")
    (photos / "captions.txt").write_text(text)
    assert build(photos).splits["val"].references[0][0].startswith("$5_ and $% off")


def test_damaged_images_are_reported_and_the_rest_is_loaded(tmp_path):
    Image.new("RGB", (10, 10), "red").save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    paths = find_images([tmp_path, tmp_path / "missing.png"])
    assert [p.name for p in paths] == ["good.png", "text.jpg", "missing.png"]
    images, loaded, failed = load_images(paths, 16)
    assert images.shape == (1, 3, 16, 16) and [p.name for p in loaded] == ["good.png"]
    assert [p.name for p, _ in failed] == ["text.jpg", "missing.png"]


def encoded(kind, side=24):
    """The bytes of an image file."""
    image = Image.linear_gradient("L").resize((side, side)).convert("CMYK" if kind == "cmyk" else "RGB")
    buffer = io.BytesIO()
    if kind == "gif":
        image.save(buffer, "gif", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    elif kind == "png16":
        Image.new("I;16", (side, side), 40_000).save(buffer, "png")
    else:
        image.save(buffer, {"cmyk": "jpeg"}.get(kind, kind))
    return buffer.getvalue()


KINDS = ["jpeg", "png", "gif", "bmp", "tiff", "webp", "cmyk", "png16"]
FILES = {kind: encoded(kind) for kind in KINDS}


@settings(max_examples=1000)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["cut", "flip", "insert", "swap"]),
    st.integers(0, 10**6),
    st.binary(max_size=8),
)
def test_a_mutated_image_is_loaded_or_refused_with_a_reason(kind, mutation, position, noise):
    data = FILES[kind]
    position %= len(data)
    mutated = {
        "cut": data[:position],
        "flip": data[:position] + bytes(b ^ 0xFF for b in data[position : position + 3]) + data[position + 3 :],
        "insert": data[:position] + noise + data[position:],
        "swap": data[position:] + data[:position],
    }[mutation]
    image, reason = try_to_load(io.BytesIO(mutated), 16)
    assert (image is None) != (reason is None)
    if image is not None:
        assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
    else:
        assert isinstance(reason, str) and reason


def test_images_of_extreme_shapes_are_loaded_and_too_large_ones_refused(tmp_path):
    for size in ((1, 1), (30_000, 1), (1, 30_000), (30_000, 40)):
        Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "x.png")
        image, reason = try_to_load(tmp_path / "x.png", 32)
        assert reason is None and image[:, 16, 16].tolist() == [9, 99, 199]
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    image, reason = try_to_load(tmp_path / "bomb.png", 32)
    assert image is None and "too large" in reason
    assert try_to_load(tmp_path, 32)[0] is None  # a folder


def test_random_crops_are_squares_of_the_image_and_half_of_them_are_mirrored():
    images = torch.arange(3 * 10 * 10, dtype=torch.int32).view(1, 3, 10, 10).expand(200, 3, 10, 10)
    crops = random_crops(images, 7)
    assert crops.shape == (200, 3, 7, 7) and crops.dtype == images.dtype
    corners, mirrored = set(), 0
    for crop in crops:
        flipped = bool(crop[0, 0, 0] > crop[0, 0, 1])
        crop = crop.flip(2) if flipped else crop
        row, column = divmod(int(crop[0, 0, 0]), 10)
        assert torch.equal(crop, images[0, :, row : row + 7, column : column + 7])
        corners.add((row, column))
        mirrored += flipped
    assert len(corners) == 16 and 70 < mirrored < 130
    assert torch.equal(random_crops(images, 10)[0].sum(), images[0].sum())
