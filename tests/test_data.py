"""Caption files: valid ones, damaged ones, the built-in scenes, and the download."""

import http.server
import io
import math
import pickle
import struct
import threading
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch

from rnn_lstm_captioning import InputError
from rnn_lstm_captioning.data import scenes
from rnn_lstm_captioning.data.caption_file import check_captions, download, load_captions
from rnn_lstm_captioning.data.vocabulary import SPECIAL_TOKENS, decode_captions, tokenize

WORDS = [*SPECIAL_TOKENS, "a", "dog"]


def valid_data():
    data = {"vocab": {"idx_to_token": list(WORDS), "token_to_idx": {t: i for i, t in enumerate(WORDS)}}}
    for split in ("train", "val"):
        data[f"{split}_images"] = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
        data[f"{split}_captions"] = torch.tensor([[1, 4, 5, 2, 0], [1, 5, 2, 0, 0], [1, 3, 5, 4, 2]])
    return data


def test_a_file_of_the_course_format_loads(tmp_path):
    data = valid_data()
    for old_format in (False, True):
        path = tmp_path / f"{old_format}.pt"
        torch.save(data, path, _use_new_zipfile_serialization=not old_format)
        loaded = load_captions(path)
        assert loaded.source == str(path) and loaded.idx_to_word == WORDS
        train = loaded.splits["train"]
        assert torch.equal(train.images, data["train_images"]) and train.image_index.tolist() == [0, 1, 2]
        assert train.references is None and "test" not in loaded.splits


def test_a_file_with_several_captions_per_image_and_a_test_split_loads(tmp_path):
    data = valid_data()
    for key in ("images", "captions"):
        data[f"test_{key}"] = data[f"val_{key}"]
    data["train_image_index"] = torch.tensor([2, 0, 0])
    data["val_references"] = [["A dog."], ["Dog!", "The dog"], ["?"]]
    torch.save(data, tmp_path / "x.pt")
    loaded = load_captions(tmp_path / "x.pt")
    assert loaded.splits["train"].image_index.tolist() == [2, 0, 0]
    assert loaded.splits["val"].references[1] == ["Dog!", "The dog"] and len(loaded.splits["test"]) == 3
    assert len(loaded.splits["train"].first(2).images) == 3 and len(loaded.splits["train"].first(2)) == 2
    assert len(loaded.splits["val"].first(1).references) == 1


def damaged(**changes):
    data = valid_data()
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    return data


def damaged_vocabulary(**changes):
    data = valid_data()
    data["vocab"] |= changes
    return data


def rows(*first):
    """Three captions; the first of them are given."""
    return torch.tensor([*first, *[[1, 4, 5, 2, 0]] * (3 - len(first))])


FAULTS = [
    ([1, 2], "it holds a list, not a dict"),
    (damaged(train_images=None), "train_images is missing"),
    (damaged(val_captions=None), "val_captions is missing"),
    (damaged(train_images=torch.zeros(3, 3, 8, 8)), r"train_images has dtype torch\.float32, wanted torch\.uint8"),
    (damaged(train_images=torch.zeros(3, 8, 8, dtype=torch.uint8)), r"train_images has shape \(3, 8, 8\), wanted"),
    (damaged(val_captions=torch.zeros(3, 5)), r"val_captions has dtype torch\.float32, wanted torch\.int64"),
    (damaged(val_captions=torch.zeros(3, dtype=torch.int64)), r"val_captions has shape \(3,\), wanted \(R, L\)"),
    (damaged(val_captions=torch.zeros(0, 5, dtype=torch.int64)), "val has no images or no captions"),
    (damaged(val_captions=torch.full((3, 5), 6)), "indices from 6 to 6, but the vocabulary has 6 words"),
    (damaged(val_captions=torch.full((3, 5), -1)), "indices from -1 to -1"),
    (damaged(val_captions=torch.full((3, 5), 4)), "val_captions row 0 does not begin with <START>"),
    (
        damaged(val_captions=rows([1, 4, 2, 0, 0], [1, 4, 0, 5, 2])),
        "val_captions row 1 has <NULL> before its last word",
    ),
    (damaged(val_captions=rows([1, 4, 0, 0, 0])), "val_captions row 0 has no <END>"),
    (damaged(val_captions=rows([1, 4, 5, 4, 5])), "val_captions row 0 has no <END>"),
    (damaged(val_captions=rows([1, 4, 2, 5, 0])), "val_captions row 0 has words after <END>"),
    (damaged(val_captions=rows([1, 4, 2, 2, 0])), "val_captions row 0 has more than one <END>"),
    (damaged(val_captions=rows([1, 4, 1, 2, 0])), "val_captions row 0 has a second <START>"),
    (damaged(val_captions=rows([1, 0, 0, 0, 0])), "val_captions row 0 has nothing after <START>"),
    (damaged(val_captions=torch.tensor([[1, 4, 2, 0, 0]] * 4)), "3 images and 4 captions, and no val_image_index"),
    (
        damaged(val_image_index=torch.zeros(2, dtype=torch.int64)),
        r"val_image_index is not an int64 tensor of shape \(3,\)",
    ),
    (
        damaged(val_image_index=torch.tensor([0, 1, 3])),
        "val_image_index has values from 0 to 3, but there are 3 images",
    ),
    (damaged(val_references=[["a"]]), "val_references is not a list with one entry for each of the 3 images"),
    (damaged(vocab=None), "vocab is missing"),
    (damaged_vocabulary(idx_to_token=None), r"vocab\['idx_to_token'\] is missing"),
    (damaged_vocabulary(token_to_idx={"a": 0}), r"vocab\['token_to_idx'\] is not the inverse"),
    (damaged_vocabulary(idx_to_token=[*WORDS, "dog"]), r"vocab\['token_to_idx'\] is not the inverse"),
    (damaged_vocabulary(idx_to_token=WORDS[1:]), "the vocabulary begins with"),
]


@pytest.mark.parametrize("data, message", FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_each_fault_has_a_message_that_names_file_and_key(data, message, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(data, path)
    with pytest.raises(InputError, match=rf"x\.pt is not a valid caption file: .*{message}"):
        load_captions(path)


def test_a_file_of_another_kind_is_refused_and_its_code_never_runs(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "x.pt"
    for content in (b"", b"text", pickle.dumps(Evil(), protocol=2)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt is not a caption file that can be read safely"):
            load_captions(path)
    torch.save({"train_images": Evil()}, path)
    with pytest.raises(InputError, match="read safely"):
        load_captions(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="there is no such caption file"):
        load_captions(tmp_path / "none.pt")


# ------------------------------------------------------------------------------------ the scenes


@pytest.fixture(scope="module")
def some_scenes():
    return scenes.make_scenes(num_train=2000, num_val=50)


def test_scenes_are_a_valid_caption_file_with_five_references(some_scenes):
    data = check_captions(some_scenes, "scenes")
    assert data.splits["train"].images.shape == (2000, 3, 112, 112)
    assert len(data.splits["val"]) == 250 and all(len(set(r)) == 5 for r in data.splits["val"].references)
    texts = decode_captions(data.splits["val"].captions, data.idx_to_word)
    for text, image in zip(texts, data.splits["val"].image_index):
        # no word is cut or unknown
        assert text in [" ".join(tokenize(r)) for r in data.splits["val"].references[image]]


def test_scenes_have_many_distinct_captions(some_scenes):
    assert len(set(decode_captions(some_scenes["train_captions"], some_scenes["vocab"]["idx_to_token"]))) > 2000


def test_scenes_are_deterministic_by_seed():
    first, again, other = (scenes.make_scenes(5, 2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first["train_images"], again["train_images"])
    assert first["val_references"] == again["val_references"] != other["val_references"]


def test_scenes_show_what_their_captions_say(some_scenes):
    """The named colours are in the image, where the caption says."""
    checked = 0
    for image, references in zip(some_scenes["val_images"], some_scenes["val_references"]):
        words = references[0].split()
        pixels = image.permute(1, 2, 0).float()
        where = {}
        for colour in set(words) & set(scenes.COLOURS):
            near = (pixels - torch.tensor(scenes.COLOURS[colour], dtype=torch.float)).abs().amax(2) <= 13
            assert near.sum() > 60, references[0]
            where[words.index(colour)] = near.nonzero().float().mean(0)
        if len(where) == 2:
            checked += 1
            (y, x), (other_y, other_x) = (where[k] for k in sorted(where))
            relation = next(r for r in scenes.RELATIONS.values() if f" {r} " in references[0])
            expected = {"left of": x < other_x, "right of": x > other_x}
            expected |= {"above": y < other_y, "below": y > other_y}
            assert expected[relation], references[0]
        elif "corner" in words or "middle" in words:
            checked += 1
            ((y, x),) = where.values()
            column, row = scenes.PLACES[" ".join(w for w in words if w in ["top", "bottom", "left", "right", "middle"])]
            assert abs(x - 56 - 28 * column) < 10 and abs(y - 56 - 28 * row) < 10, references[0]
    assert checked > 40


# ---------------------------------------------------------------------------------- the download


@pytest.fixture
def server():
    """A server of ``content`` at /file. It accepts ranges if ``resumable``, and ``cut`` ends each answer early."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, resumable, cut, ranges = bytes(range(256)) * 4000, True, None, []

        def do_GET(self):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if Handler.resumable else 0
            Handler.ranges.append(start)
            body = Handler.content[start:]
            self.send_response(206 if Handler.resumable else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: Handler.cut])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}/file"
    Handler.ranges = []
    yield Handler
    server.shutdown()
    server.server_close()


def fetch(server, path):
    pieces = []
    download(server.url, path, len(server.content), pieces.append)
    return pieces


def test_a_download_appears_only_when_complete_and_is_not_repeated(server, tmp_path):
    path = tmp_path / "folder" / "coco.pt"
    assert sum(fetch(server, path)) == len(server.content)
    assert path.read_bytes() == server.content and list(path.parent.iterdir()) == [path]
    assert fetch(server, path) == [] and server.ranges == [0]


@pytest.mark.parametrize("resumable", [True, False])
def test_a_download_continues_after_an_interruption(server, tmp_path, resumable):
    path = tmp_path / "coco.pt"
    server.cut = 300_000
    with pytest.raises(InputError, match="run the command again"):
        fetch(server, path)
    assert not path.exists()
    server.cut, server.resumable = None, resumable
    assert sum(fetch(server, path)) == len(server.content)
    assert path.read_bytes() == server.content
    assert server.ranges == [0, 300_000 if resumable else 0]


def test_a_download_of_the_wrong_size_or_without_a_server_fails(server, tmp_path):
    path = tmp_path / "coco.pt"
    with pytest.raises(InputError, match="it is not the expected file"):
        download(server.url, path, 1000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="could not be downloaded"):
        download("http://127.0.0.1:9/file", path, 1000)


class Sparse:
    """A uint8 tensor of zeros that a file has room for, and the memory has not."""

    def __init__(self, *shape):
        self.shape, self.bytes = shape, math.prod(shape)

    def __reduce__(self):
        strides = tuple(math.prod(self.shape[k + 1 :]) for k in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (Room(self.bytes), 0, self.shape, strides, False, OrderedDict())


class Room(NamedTuple):
    bytes: int


class SparsePickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.ByteStorage, "big", "cpu", value.bytes) if isinstance(value, Room) else None


def save_sparse(path, value, sparse):
    """torch.save, with a tensor that takes no room on the disk. Args: sparse, (key, tensor)."""
    file, head = io.BytesIO(), io.BytesIO()
    torch.save(value, file)
    key, tensor = sparse
    SparsePickler(head, 2).dump(tensor)
    one = head.getvalue()[2:-1]  # without the protocol and the stop
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):  # dict, SETITEMS, STOP: add one more item
                name_of_key = b"X" + struct.pack("<I", len(key)) + key.encode()
                content = content[:-1] + name_of_key + one + b"s."
            new.writestr(name, content)
        info = zipfile.ZipInfo(f"{name.split('/')[0]}/data/big")
        with new.open(info, "w", force_zip64=True) as part:
            new.fp.seek(tensor.bytes - 1, 1), new.fp.write(b"\0")
            part._file_size = part._compress_size = tensor.bytes


def test_a_caption_file_can_be_larger_than_the_memory(scenes_file, tmp_path):
    """200 GB of images, of which only the pages in use take memory; torch's own map of them fails."""
    data = torch.load(scenes_file, weights_only=True)
    del data["train_images"], data["train_references"], data["train_image_names"]
    images = Sparse(200_000_000_000 // (3 * 256 * 256), 3, 256, 256)
    try:
        save_sparse(tmp_path / "x.pt", data, ("train_images", images))
    except OSError:
        pytest.skip("this file system has no sparse files of this size")
    assert (tmp_path / "x.pt").stat().st_blocks * 512 < 1e8
    train = load_captions(tmp_path / "x.pt").splits["train"]
    assert train.images.shape == images.shape and train.images[[0, 5, -1]].sum() == 0
    assert len(train) == len(data["train_captions"])
