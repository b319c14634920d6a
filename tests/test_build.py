import csv
import json

import pytest
import torch
from PIL import Image

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data.build import main, read_captions
from rnn_lstm_captioning.data.files import load_captions
from rnn_lstm_captioning.data.images import find_images, load_image, load_images
from rnn_lstm_captioning.vocabulary import decode_captions


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures of one colour each, and a CSV with two captions for each of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with open(tmp_path / "captions.txt", "w", newline="") as file:
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
            texts = decode_captions(split.captions[split.image_index == row], data.idx_to_token)
            assert texts[1] == "it is blue or so"
            if split is train:
                assert texts[0] == f"a picture number {k}"
    assert val.references == [[f"A picture, number {val.image_names[0][:-4]} .", 'It "is" blue\nor so.']]
    assert train.references is None
    report = (photos / "x_report.txt").read_text()
    assert "train: 22 captions, 0 cut after 15 words, 0 empty ones left out" in report
    assert sorted(p.name for p in photos.iterdir()) == ["captions.txt", "photos", "x.pt", "x_report.txt"]


def test_lists_choose_the_splits_and_bad_pictures_are_named(photos):
    (photos / "photos/3.png").write_bytes(b"not a picture")
    (photos / "photos/4.png").write_bytes((photos / "photos/4.png").read_bytes()[:60])
    (photos / "photos/5.png").unlink()
    (photos / "train.txt").write_text("\n".join(f"{k}.png" for k in range(8)))
    (photos / "val.txt").write_text("8.png\n9.png\n77.png\n")
    data = build(photos, "--train-list", photos / "train.txt", "--val-list", photos / "val.txt")
    assert data.splits["train"].image_names == ["0.png", "1.png", "2.png", "6.png", "7.png"]
    assert data.splits["val"].image_names == ["8.png", "9.png"]
    report = (photos / "x_report.txt").read_text()
    assert (
        "train: pictures that could not be used: 3\n  3.png: " in report and "  5.png: there is no such file" in report
    )
    assert "val: pictures of the list without a caption: 1\n  77.png" in report


def test_coco_json(photos):
    notes = [{"image_id": k, "caption": f"number {k}"} for k in (2, 1, 2)]
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(4)]
    path = photos / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    assert read_captions(path) == {"2.png": ["number 2", "number 2"], "1.png": ["number 1"]}
    assert len(build(photos, "--captions", path, "--val-fraction", "0.5").splits["train"]) in (1, 2)


def test_wrong_input_is_one_sentence(photos):
    def fails(message, *extra):
        with pytest.raises(InputError, match=message):
            build(photos, *extra)
        assert not (photos / "x.pt").exists() and not (photos / "x_report.txt").exists()

    fails("--images .*nowhere: there is no such folder", "--images", photos / "nowhere")
    fails("--captions .*none.txt: there is no such file", "--captions", photos / "none.txt")
    fails("--train-list and --val-list go together", "--train-list", photos / "captions.txt")
    fails("--val-fraction must lie between 0 and 1", "--val-fraction", "1.5")
    fails("--size must be at least 32", "--size", "8")
    (photos / "bad.json").write_text("{")
    fails("is not a COCO captions JSON", "--captions", photos / "bad.json")
    (photos / "bad.csv").write_text("name;text\n")
    fails("the first line must be image,caption", "--captions", photos / "bad.csv")
    (photos / "empty.csv").write_text("image,caption\n")
    fails("holds no captions", "--captions", photos / "empty.csv")
    (photos / "other.csv").write_text("image,caption\na.jpg,hello\nb.jpg,hello\n")
    fails("none of the 1 train pictures could be read; the first: .*no such file", "--captions", photos / "other.csv")
    (photos / "both.txt").write_text("1.png\n")
    fails("1 pictures are in both lists, 1.png", "--train-list", photos / "both.txt", "--val-list", photos / "both.txt")


# ------------------------------------------------------------------------------- single pictures


def test_every_mode_becomes_rgb(tmp_path):
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


def test_broken_pictures_are_reported_and_the_rest_is_loaded(tmp_path):
    Image.new("RGB", (10, 10), "red").save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    paths = find_images([tmp_path, tmp_path / "missing.png"])
    assert [p.name for p in paths] == ["good.png", "text.jpg", "missing.png"]
    images, loaded, failed = load_images(paths, 16)
    assert images.shape == (1, 3, 16, 16) and [p.name for p in loaded] == ["good.png"]
    assert [p.name for p, _ in failed] == ["text.jpg", "missing.png"]
