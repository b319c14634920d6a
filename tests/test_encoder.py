"""The image encoder: its features, its weights, and the feature cache."""

import http.server
import re
import threading

import pytest
import torch
import torchvision
from helpers import run_train
from PIL import Image
from torchvision.transforms.v2.functional import resize

from rnn_lstm_captioning import ImageEncoder, InputError, load_captioner
from rnn_lstm_captioning.training import features
from rnn_lstm_captioning.training.features import FeaturePass, encode_all


@pytest.mark.parametrize("name, C", [("regnet_x_400mf", 400), ("mobilenet_v2", 1280), ("resnet18", 512)])
def test_features_are_those_of_the_network_before_pooling(name, C, tmp_path):
    network = torchvision.models.get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    encoder = ImageEncoder(name=name, weights_file=tmp_path / "w.pth")
    assert encoder.out_channels == C
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    features = encoder(images)
    assert features.shape == (2, C, 4, 4)
    assert encoder(images[:, :, :64, :96]).shape == (2, C, 2, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = torchvision.transforms.functional.normalize(images / 255, mean.tolist(), std.tolist())
    head = network.fc if hasattr(network, "fc") else network.classifier
    torch.testing.assert_close(head(features.mean((2, 3))), network(normalised), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(images / 255), features)


def test_a_frozen_encoder_never_changes():
    encoder = ImageEncoder(pretrained=False)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.train()
    features = encoder(torch.rand(4, 3, 64, 64))
    assert not features.requires_grad and not any(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_finetuned_encoder_gets_gradients_and_updates_its_statistics():
    encoder = ImageEncoder(pretrained=False, frozen=False).train()
    assert not encoder.cnn[0][1].running_mean.any()
    encoder(torch.rand(4, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder.cnn[0][1].running_mean.any()


def norms_of(encoder):
    return [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("layer", [None, "features.13"])
def test_a_cnn_is_finetuned_from_a_layer_on(layer):
    settings = dict(name="mobilenet_v2", frozen=False, layer=layer)
    encoder = ImageEncoder(False, **settings, finetune_from="features.12").train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(torch.rand(4, 3, 64, 64)).sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.grad is not None}
    first = next(i for i, name in enumerate(dict(encoder.named_parameters())) if name in trained)
    assert trained == set(list(dict(encoder.named_parameters()))[first:])  # all layers after it, none before
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == trained
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(".running_" in name or ".num_batches" in name for name in changed)
    assert all(norm.weight.requires_grad == norm.training for norm in norms_of(encoder))
    whole = ImageEncoder(False, **settings)
    assert len(trained) < sum(p.requires_grad for p in whole.parameters()) == len(list(whole.parameters()))
    with pytest.raises(InputError, match=r"mobilenet_v2 has no layer features\.99 with weights; it has features\.0"):
        ImageEncoder(False, **settings, finetune_from="features.99")


def test_frozen_batchnorm_keeps_its_statistics_and_is_trained_otherwise():
    encoder = ImageEncoder(False, frozen=False, freeze_batchnorm=True).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(torch.rand(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(p.grad is not None for p in encoder.parameters())
    assert not any(norm.training for norm in norms_of(encoder))


def test_bad_images_are_refused():
    encoder = ImageEncoder(pretrained=False)
    with pytest.raises(ValueError, match=r"images has shape \(3, 64, 64\), wanted \(N, 3, height, width\)"):
        encoder(torch.rand(3, 64, 64))
    for images in (255 * torch.rand(1, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan)):
        with pytest.raises(ValueError, match="floats far outside"):
            encoder(images)
    with pytest.raises(TypeError, match=r"dtype torch\.int64"):
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.int64))


def test_normalised_images_are_taken_as_they_are():
    encoder, images = ImageEncoder(pretrained=False), torch.rand(2, 3, 64, 64)
    with pytest.warns(UserWarning, match="takes them as normalised already"):
        found = encoder((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(found, encoder(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fasterrcnn_resnet50_fpn", "raft_small", "r3d_18"])
def test_networks_for_other_tasks_are_refused_without_a_download(name, monkeypatch):
    def no_download(*_, **__):
        raise AssertionError("it must not fetch weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    with pytest.raises(InputError, match=f"--encoder {name} is not a classification network of torchvision"):
        ImageEncoder(name=name)


def test_bad_networks_and_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="--encoder nonsense is not a classification network of torchvision"):
        ImageEncoder(False, name="nonsense")
    with pytest.raises(InputError, match="--encoder vit_b_16 has no spatial features"):
        ImageEncoder(False, name="vit_b_16")
    with pytest.raises(InputError, match="there is no such file"):
        ImageEncoder(weights_file=tmp_path / "none.pth")
    path = tmp_path / "w.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a file of weights"):
        ImageEncoder(weights_file=path)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)
    with pytest.raises(InputError, match=r"does not fit --encoder regnet_x_400mf: \d+ tensors are missing, not needed"):
        ImageEncoder(weights_file=path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="needs a state dict"):
        ImageEncoder(weights_file=path)


# ------------------------------------------------------------------- torchvision's download path


@pytest.fixture
def weights_url(tmp_path, monkeypatch):
    """A function that points RegNet's weights enum at a file of a local server, which has random weights."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(torchvision.models.regnet_x_400mf().state_dict(), folder / "regnet.pth")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    weights = torchvision.models.get_model_weights("regnet_x_400mf").DEFAULT

    def point_at(file):
        monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:{server.server_port}/{file}")
        return folder / file

    yield point_at
    server.shutdown()
    server.server_close()


def test_imagenet_weights_are_downloaded_by_torchvision(weights_url, tmp_path):
    path = weights_url("regnet.pth")
    encoder = ImageEncoder(pretrained=True)
    assert (tmp_path / "home/hub/checkpoints/regnet.pth").exists()
    assert torch.equal(encoder.cnn[0][0].weight, torch.load(path, weights_only=True)["stem.0.weight"])


def test_a_failed_download_names_the_other_choices(weights_url):
    weights_url("missing.pth")
    with pytest.raises(
        InputError, match=r"could not be downloaded .*404.*--encoder-weights FILE.*--encoder-weights none"
    ):
        ImageEncoder(pretrained=True)


# ------------------------------------------------------------------------------ the feature cache


def test_features_are_cached_until_something_that_they_depend_on_changes(tmp_path, monkeypatch):
    encoder = ImageEncoder(False, name="mobilenet_v2")
    images = torch.randint(0, 256, (7, 3, 64, 64), dtype=torch.uint8)
    found = encode_all(encoder, images, FeaturePass(batch_size=3), tmp_path / "data.train")
    assert found.dtype == torch.float16 and found.shape == (7, 1280, 2, 2)
    torch.testing.assert_close(found.float(), encoder(images), rtol=2e-3, atol=1e-3)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("data.train.mobilenet_v2-")

    def computes(images, identity, **settings):
        before = set(tmp_path.iterdir())
        encode_all(encoder, images, FeaturePass(**settings), tmp_path / "data.train", identity)
        return set(tmp_path.iterdir()) != before

    assert not computes(images, "")
    for case in ((images, "another file"), (images[:5], "")):
        assert computes(*case) and not computes(*case)
    assert computes(images, "", precision="bf16") and not computes(images, "", precision="bf16")
    encoder.cnn[0][0][0].weight.data[0, 0, 0, 0] += 1
    assert computes(images, "") and not computes(images, "")
    encoder.image_size = 96
    assert computes(images, "") and not computes(images, "")
    assert torch.equal(encode_all(encoder, images), encode_all(encoder, images, stem=tmp_path / "data.train"))


@pytest.mark.parametrize("name", ["resnet50", "regnet_x_400mf", "vgg11_bn"])
def test_calibration_keeps_the_features_of_random_weights_in_range(name):
    encoder = ImageEncoder(False, name=name)
    images = torch.randint(0, 256, (32, 3, 64, 64), dtype=torch.uint8)
    encoder.calibrate(images)
    features = encoder(images)
    assert 0.05 < features.std() < 20 and features.isfinite().all()
    assert not any(module.training for module in encoder.cnn.modules())
    norm = next(module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_mean.any() and norm.momentum == 0.1
    assert torch.equal(encoder(images), features)


@pytest.mark.parametrize(
    "name, channels, side",
    [
        ("regnet_x_400mf", 400, 2),
        ("resnet50", 2048, 2),
        ("resnet101", 2048, 2),
        ("resnet152", 2048, 2),
        ("mobilenet_v2", 1280, 2),
        ("vgg11", 512, 2),
        ("densenet121", 1024, 2),
        ("efficientnet_b0", 1280, 2),
        ("convnext_tiny", 768, 2),
        ("shufflenet_v2_x0_5", 1024, 2),
        ("squeezenet1_1", 512, 3),
        ("mnasnet0_5", 1280, 2),
        ("swin_t", 768, 2),
    ],
)
def test_channels_and_grid_are_found(name, channels, side):
    encoder = ImageEncoder(False, name=name)
    assert encoder.out_channels == channels
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, channels, side, side)


def test_published_weights_with_older_names_load(tmp_path):
    """DenseNet's published weights have names such as norm.1 instead of norm1; some have no num_batches_tracked."""
    network = torchvision.models.densenet121(weights=None)
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert any(".norm.1." in key for key in state)
    torch.save(state, tmp_path / "w.pth")
    encoder = ImageEncoder(name="densenet121", weights_file=tmp_path / "w.pth")
    assert torch.equal(
        encoder.cnn[0].denseblock1.denselayer1.norm1.weight, network.features.denseblock1.denselayer1.norm1.weight
    )
    assert torch.equal(encoder.cnn[0].conv0.weight, network.features.conv0.weight)


def test_white_float_images_can_be_resized():
    assert ImageEncoder(False, name="mobilenet_v2", image_size=64)(torch.ones(1, 3, 96, 96)).isfinite().all()


def test_images_are_resized_by_the_encoder():
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    encoder = ImageEncoder(False, name="mobilenet_v2", image_size=64)
    assert encoder(images).shape == (2, 1280, 2, 2)
    same_size = resize(images, [64, 64], antialias=True)
    torch.testing.assert_close(encoder(images), encoder(same_size), rtol=0, atol=0)


def test_an_interrupted_feature_pass_leaves_nothing_behind(tmp_path, monkeypatch):
    def progress(batches, **_):
        yield from list(batches)[:1]
        raise KeyboardInterrupt

    encoder = ImageEncoder(False, name="mobilenet_v2")
    monkeypatch.setattr(features, "tqdm", progress)
    with pytest.raises(KeyboardInterrupt):
        encode_all(encoder, torch.zeros(4, 3, 64, 64, dtype=torch.uint8), FeaturePass(batch_size=2), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, layer, grid",
    [("mobilenet_v2", "features.13", 7), ("regnet_x_400mf", "trunk_output.block3", 7), ("resnet18", "layer3", 7)],
)
def test_an_earlier_layer_gives_a_finer_grid(name, layer, grid):
    torch.manual_seed(1)
    encoder = ImageEncoder(False, name=name, layer=layer).eval()
    images = torch.randint(256, (2, 3, 112, 112), dtype=torch.uint8)
    found = encoder(images)
    assert found.shape == (2, encoder.out_channels, grid, grid)
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None).eval()
    kept = {}
    network.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.update(features=output))
    with torch.no_grad():
        network((images / 255 - encoder.mean) / encoder.std)
    torch.testing.assert_close(found, kept["features"], rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_not_there_or_has_no_grid_is_refused():
    with pytest.raises(InputError, match="mobilenet_v2 has no layer nope; it has features.0, features.1"):
        ImageEncoder(False, name="mobilenet_v2", layer="nope")
    with pytest.raises(InputError, match="has no spatial features"):
        ImageEncoder(False, name="mobilenet_v2", layer="classifier.1")


def test_a_run_with_an_earlier_layer_is_saved_and_resumed(scenes_file, tmp_path):
    flags = "--encoder squeezenet1_1 --encoder-weights none --hidden-dim 8 --wordvec-dim 4 --quiet --device cpu"
    flags = ["--data", str(scenes_file), "--out", str(tmp_path), *flags.split()]
    run_train("attn", [*flags, "--epochs", "1", "--encoder-layer", "features.7"])
    captioner = load_captioner(tmp_path / "attn_best.pt", "cpu")
    caption = captioner.caption(Image.new("RGB", (50, 50), "red"))
    assert captioner.model.image_encoder.layer == "features.7" and caption.attention.shape[1:] == (13, 13)
    run_train("attn", [*flags, "--epochs", "2", "--encoder-layer", "features.7", "--resume"])
    with pytest.raises(InputError, match="was trained with --encoder-layer features.7, not None"):
        run_train("attn", [*flags, "--epochs", "3", "--resume"])
