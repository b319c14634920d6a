"""The captioner: its loss, its parameters, sampling, conditioning, and batches."""

import math

import pytest
import torch
from helpers import CELLS, CELLS_BY_NAME, TinyEncoder, random_captions, tiny_captioner, words_to_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from rnn_lstm_captioning import CaptioningRNN, ImageEncoder, ModelSettings, build_captioner, temporal_softmax_loss
from rnn_lstm_captioning.data.vocabulary import END, NULL, START, UNK
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.trainer import caption_loss


def images(N, side=64):
    return torch.rand(N, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("cell", CELLS)
def test_first_loss_is_ln_V_per_scored_word(cell):
    V = 1000
    captioner = tiny_captioner(cell, V=V, D=256, H=512).float()
    captions = random_captions(64, 17, V)
    scored = (captions[:, 1:] != NULL).sum().item() / 64
    loss = captioner(images(64).float(), captions).item()
    assert abs(loss / (scored * math.log(V)) - 1) < 0.05


@pytest.mark.parametrize("cell", CELLS)
def test_the_captioner_has_the_expected_number_of_parameters(cell):
    V, D, H, C = 50, 8, 16, TinyEncoder.out_channels
    captioner = tiny_captioner(cell, V=V, D=D, H=H)
    known = {"rnn": (1, H), "lstm": (4, H), "gru": (3, H), "attn": (4, 2 * H)}
    blocks, inputs = known.get(cell, (captioner.cell.Wx.shape[1] // H, H))
    gates = blocks * H * (D + inputs + 1)
    expected = V * D + (C + 1) * H + gates + (H + 1) * V
    counted = sum(p.numel() for name, p in captioner.named_parameters() if not name.startswith("image_encoder"))
    assert counted == expected


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_gets_a_gradient_and_padding_does_not_change_the_loss(cell):
    captioner = tiny_captioner(cell)
    captions = random_captions(6, 8, 12)
    captioner(images(6), captions).backward()
    for name, parameter in captioner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    # padding after <END> does not change the loss
    features = captioner.encode(images(6))
    before = captioner.loss(features, captions)
    longer = torch.cat([captions, torch.full((6, 3), NULL)], dim=1)
    torch.testing.assert_close(captioner.loss(features, longer), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_loss_is_the_temporal_softmax_loss_of_the_shifted_captions(cell):
    captioner = tiny_captioner(cell)
    captions, features = random_captions(4, 7, 12), torch.randn(4, 6, 2, 3, dtype=torch.float64)
    scores = captioner.scores(features, captions[:, :-1])
    expected = temporal_softmax_loss(scores, captions[:, 1:], NULL)
    torch.testing.assert_close(captioner.loss(features, captions), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_an_image_projected_once_gives_the_loss_and_gradients_of_one_row_per_caption(cell):
    captioner = tiny_captioner(cell)
    captions, which = random_captions(7, 6, 12), torch.tensor([0, 2, 2, 0, 1, 2, 0])
    features = torch.randn(3, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    found, wanted = captioner.loss(features, captions, which), captioner.loss(features[which], captions)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (found, wanted)))
    torch.testing.assert_close(
        captioner.log_probs(features, captions, which), captioner.log_probs(features[which], captions)
    )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("side", [112, 64])
def test_teacher_forcing_a_sampled_caption_reproduces_every_argmax(cell, side):
    encoder = ImageEncoder(pretrained=False)
    captioner = CaptioningRNN(words_to_idx(40), hidden_dim=32, wordvec_dim=16, cell_type=cell, image_encoder=encoder)
    check_sample(captioner, torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8), 15)


@pytest.mark.parametrize("cell", CELLS)
@given(
    N=st.integers(1, 6),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    T=st.integers(1, 8),
    seed=st.integers(0, 999),
)
@settings(max_examples=25)
def test_sampled_captions_are_right_for_any_grid(cell, N, rows, columns, T, seed):
    torch.manual_seed(seed)
    captioner = tiny_captioner(cell)
    captioner.vocabulary_projection.W.data *= 20  # confident, so that captions end at different times
    captioner.vocabulary_projection.b.data[END] += 2
    check_sample(captioner, torch.rand(N, 3, 32 * rows, 32 * columns, dtype=torch.float64), T)


def check_sample(captioner, images, T):
    captioner.train()
    result = captioner.sample(images, max_length=T)
    assert captioner.training
    captions, weights = result if captioner.cell_type == "attn" else (result, None)
    N = len(images)
    assert captions.shape == (N, T) and captions.dtype == torch.int64
    ended = (captions == END).cumsum(1) - (captions == END).long() > 0  # strictly after <END>
    assert (captions[ended] == NULL).all()
    live = captions[~ended]
    assert not torch.isin(live, torch.tensor([NULL, START, UNK])).any()
    captioner.eval()
    features = captioner.encode(images)
    fed = torch.cat([torch.full((N, 1), START), captions[:, :-1]], dim=1)
    scores = captioner.scores(features, fed)
    scores[:, :, [NULL, START, UNK]] = -torch.inf
    assert torch.equal(scores.argmax(2)[~ended], live)
    if weights is not None:
        assert weights.shape == (N, T, *features.shape[2:])
        sums = weights.sum((2, 3))
        torch.testing.assert_close(sums[~ended], torch.ones_like(sums[~ended]))
        assert (sums[ended] == 0).all()


def test_sampling_stops_when_all_captions_have_ended(monkeypatch):
    captioner = tiny_captioner("lstm")
    captioner.vocabulary_projection.b.data[END] = 1e3
    steps, step = [], captioner.step
    monkeypatch.setattr(captioner, "step", lambda *a: steps.append(1) or step(*a))
    captions = captioner.sample(images(3), max_length=9)
    assert len(steps) == 1 and captions[:, 0].eq(END).all() and captions[:, 1:].eq(NULL).all()


def test_wrong_constructor_arguments_are_refused():
    with pytest.raises(ValueError, match=f"cell_type is 'no such cell', wanted one of {', '.join(CELLS)}"):
        tiny_captioner("no such cell")
    with pytest.raises(ValueError, match="input_dim is 400, but the features of tiny have 6 channels"):
        tiny_captioner("rnn", input_dim=400)
    assert tiny_captioner("rnn", input_dim=6).image_encoder.out_channels == 6
    for words in ({"a": 0, "b": 1}, words_to_idx(9) | {"gap": 11}):
        with pytest.raises(ValueError, match="word_to_idx must map"):
            CaptioningRNN(words, image_encoder=TinyEncoder()).sample(torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="word_to_idx must map"):
            build_captioner(ModelSettings(cell="rnn", encoder="squeezenet1_1"), words)
    with pytest.raises(ValueError, match=r"features has shape \(2, 5, 2, 2\), wanted .* = \(N, 6, grid_h, grid_w\)"):
        tiny_captioner("attn").loss(torch.zeros(2, 5, 2, 2), random_captions(2, 5, 12))


@pytest.mark.parametrize("cell", CELLS)
def test_standardized_features_have_mean_0_and_variance_1(cell):
    captioner = tiny_captioner(cell)
    features = 3 + 2 * torch.randn(500, 6, 2, 3, dtype=torch.float64)
    captioner.standardize(features)
    captioner.feature_projection = torch.nn.Identity()
    projected = captioner.project_features(features)
    assert projected.mean().abs() < 1e-6 and (projected.std() - 1).abs() < 1e-2
    captioner.standardize(torch.zeros_like(features))  # channels that are always 0
    assert captioner.project_features(features).isfinite().all()


def test_the_loss_in_bf16_is_close_to_that_in_fp32():
    for cell in CELLS:
        captioner = tiny_captioner(cell, V=50, D=16, H=32).float()
        features, captions = torch.randn(8, 6, 2, 2), random_captions(8, 10, 50)
        with torch.autocast("cpu", torch.bfloat16):
            loss = captioner.loss(features, captions)
        assert abs(loss.item() / captioner.loss(features, captions).item() - 1) < 0.02


# ---------------------------------------------------------------------- conditioning and batching


@pytest.mark.parametrize("cell", [cell for cell in CELLS if not CELLS_BY_NAME[cell].uses_grid])
def test_the_first_token_is_the_projected_image(cell):
    captioner = tiny_captioner(cell, image_input="first-token", image_norm="batchnorm")
    captions, features = random_captions(4, 7, 12), torch.randn(4, 6, 2, 3, dtype=torch.float64)
    assert captioner.feature_projection.W.shape == (6, 5)  # to a word vector, not to a hidden state
    captioner(images(4), captions).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in captioner.parameters())
    captioner.eval()
    # by hand: the image, then the words; the loss starts at the first word
    image = captioner.image_norm(captioner.feature_projection(features.mean((2, 3))))
    x = torch.cat([image.unsqueeze(1), captioner.word_embedding(captions[:, :-1])], 1)
    h = captioner.cell(x, torch.zeros(4, 7, dtype=torch.float64))
    scores = captioner.vocabulary_projection(h[:, 1:])
    expected = temporal_softmax_loss(scores, captions[:, 1:], NULL)
    torch.testing.assert_close(captioner.loss(features, captions), expected, rtol=1e-12, atol=0)
    # the same, word by word
    state, image = captioner.start(features)
    for t in range(6):
        step_scores, state, _ = captioner.step(captions[:, t], state, image)
        torch.testing.assert_close(step_scores, scores[:, t])


def test_batchnorm_normalises_a_batch_and_skips_its_statistics_for_a_batch_of_one():
    captioner = tiny_captioner("lstm", image_norm="batchnorm")
    captions, features = random_captions(50, 7, 12), 3 + torch.randn(50, 6, 2, 3, dtype=torch.float64)
    projected = captioner.project_features(features)
    assert projected.mean(0).abs().max() < 1e-6 and (projected.std(0, unbiased=False) - 1).abs().max() < 1e-3
    assert captioner.image_norm.momentum == 0.01
    before = captioner.image_norm.running_mean.clone()
    assert captioner.loss(features[:1], captions[:1]).isfinite()
    assert torch.equal(captioner.image_norm.running_mean, before)


def test_impossible_conditioning_is_refused():
    with pytest.raises(ValueError, match="image_input is 'top', wanted one of h0, first-token"):
        tiny_captioner("rnn", image_input="top")
    with pytest.raises(ValueError, match="image_norm is 'layer', wanted one of none, batchnorm"):
        tiny_captioner("rnn", image_norm="layer")
    with pytest.raises(ValueError, match="attn reads the grid at every step"):
        tiny_captioner("attn", image_input="first-token")


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 1000), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_batches_contain_every_caption_once(R, batch_size, seed, by_length, in_loop):
    generator = torch.Generator().manual_seed(seed)
    captions = random_captions(R, 8, 12, generator)
    M = 1 + R // 3
    images = {"images": torch.zeros(M, 3, 1, 1)} if in_loop else {"features": torch.zeros(M, 6, 1, 1)}
    pairs = Pairs(captions, torch.randint(0, M, (R,), generator=generator), **images)
    batching = "length" if by_length else "padded"
    batches = pairs.row_batches(batch_size, batching, torch.Generator().manual_seed(seed))
    assert torch.cat(list(batches)).sort().values.tolist() == list(range(R))
    assert all(0 < len(rows) <= batch_size for rows in batches)
    lengths = (captions != NULL).sum(1)
    if by_length:
        assert all(len(lengths[rows].unique()) == 1 for rows in batches)
        assert len(batches) == sum(-(-count // batch_size) for count in lengths.unique(return_counts=True)[1].tolist())
    again = pairs.row_batches(batch_size, batching, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(batches, again))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 1000))
def test_where_the_cnn_runs_in_the_loop_a_batch_has_whole_images(counts, batch_size, seed):
    image_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    image_index = image_index[torch.randperm(len(image_index), generator=torch.Generator().manual_seed(seed))]
    R = len(image_index)
    pairs = Pairs(torch.zeros(R, 4, dtype=torch.int64), image_index, images=torch.zeros(0), together=True)
    batches = pairs.row_batches(batch_size, "padded", torch.Generator().manual_seed(seed))
    assert torch.cat(list(batches)).sort().values.tolist() == list(range(R))
    assert len(batches) == -(-R // batch_size)  # in every epoch the same
    if batch_size >= 2 * max(counts) and batch_size < R:
        visits = sum(len(image_index[rows].unique()) for rows in batches)
        assert visits == len(counts), "an image is in two batches"
        assert max(map(len, batches)) < batch_size + max(counts)


def test_padding_length_batches_and_packing_give_the_same_loss():
    R, V, D, H = 40, 12, 5, 7
    captioner = tiny_captioner("lstm", V=V, D=D, H=H)
    captions, features = random_captions(R, 9, V), torch.randn(R, 6, 2, 2, dtype=torch.float64)
    pairs = Pairs(captions, torch.arange(R), features=features)
    padded = captioner.loss(features, captions)
    buckets = pairs.row_batches(8, "length", torch.Generator().manual_seed(0))
    bucketed = sum(caption_loss(captioner, pairs.batch(rows, "cpu")) * len(rows) for rows in buckets) / R
    torch.testing.assert_close(bucketed, padded, rtol=1e-10, atol=0)

    lstm = torch.nn.LSTM(D, H, batch_first=True).double()
    i, f, o, g = range(4)  # our order; torch's is i, f, g, o
    for name, ours in (("ih", captioner.cell.Wx), ("hh", captioner.cell.Wh)):
        gates = ours.detach().chunk(4, dim=1)
        getattr(lstm, f"weight_{name}_l0").data = torch.cat([gates[k].T for k in (i, f, g, o)]).contiguous()
    gates = captioner.cell.b.detach().chunk(4)
    lstm.bias_ih_l0.data, lstm.bias_hh_l0.data = (
        torch.cat([gates[k] for k in (i, f, g, o)]),
        torch.zeros(4 * H).double(),
    )
    lengths = (captions[:, 1:] != NULL).sum(1)
    x = pack_padded_sequence(
        captioner.word_embedding(captions[:, :-1]), lengths, batch_first=True, enforce_sorted=False
    )
    h0 = captioner.project_features(features)[None]
    h = lstm(x, (h0, torch.zeros_like(h0)))[0].data
    right = pack_padded_sequence(captions[:, 1:], lengths, batch_first=True, enforce_sorted=False).data
    packed = torch.nn.functional.cross_entropy(captioner.vocabulary_projection(h), right, reduction="sum") / R
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=0)


def test_augmented_pairs_have_new_crops_in_every_batch():
    captioner = tiny_captioner("lstm")
    pairs = Pairs(random_captions(6, 7, 12), torch.arange(6), images=torch.rand(6, 3, 64, 64).double(), crop_size=32)
    losses = {caption_loss(captioner, pairs.batch(torch.arange(6), "cpu")).item() for _ in range(4)}
    assert len(losses) == 4
    assert pairs.subset(3).crop_size is None and len(pairs.subset(3)) == 3


@pytest.mark.parametrize("cell, published", [("rnn", 150.6090393066), ("lstm", 146.3161468505859), ("attn", None)])
@pytest.mark.parametrize("random", [True, False])
def test_the_course_notebooks_cells_run_as_they_are(cell, published, random):
    """Vocabulary, images, parameters and losses are those of the notebook of EECS 498 (assignment 5). Any features that
    are positive and large give the published losses; that of the attention needs those of its pretrained CNN."""
    N, W, H, T = 10, 30, 40, 13
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    V = len(word_to_idx)
    encoder = TinyEncoder()
    model = CaptioningRNN(
        word_to_idx, input_dim=6, wordvec_dim=W, hidden_dim=H, cell_type=cell, ignore_index=0, image_encoder=encoder
    )
    for _, v in model.named_parameters():
        v.data.copy_(torch.linspace(-1.4, 1.3, steps=v.numel()).view(*v.shape))
    images = torch.randn(N, 3, 112, 112) if random else torch.linspace(-3, 3, N * 3 * 112 * 112).view(N, 3, 112, 112)
    captions = (torch.arange(N * T) % V).view(N, T)
    assert model(images, captions).isfinite()
    if published:
        large = 1e6 * torch.ones(N, 6, 4, 4)
        assert model.loss(large, captions).item() == pytest.approx(published, rel=1e-6)


def test_words_that_captions_rarely_repeat_are_written_once():
    captioner, rows = tiny_captioner("lstm"), []
    rows += [[START, 4, 5, 4, END]] * 2 + [[START, 4, 6, 6, END]] * 1 + [[START, 4, 5, 6, END]] * 18
    rows += [[START, 7, 7, UNK, UNK]]
    # words 4, 6 and 7 are repeated by 2 of 21, 1 of 19 and 1 of 1 captions; the special words never count
    captioner.count_words(torch.tensor(rows))
    names = {captioner.idx_to_word[i] for i in captioner.written_once.nonzero().flatten().tolist()}
    assert names == {"w1"}  # word 5
    older = {name: tensor for name, tensor in captioner.state_dict().items() if name != "written_once"}
    again = tiny_captioner("lstm")
    again.load_state_dict(older)  # files of earlier versions
    assert not again.written_once.any()


def test_words_that_hardly_ever_end_a_caption_are_never_last():
    captioner, rows = tiny_captioner("lstm"), []
    rows += [[START, 4, 5, END, NULL]] * 200 + [[START, 6, 7, END, NULL]] + [[START, UNK, 7, 6, END]] * 300
    # word 4 is never the last of 200, word 6 only in captions that may have been cut, and once is not often enough
    captioner.count_words(torch.tensor(rows))
    names = {captioner.idx_to_word[i] for i in captioner.never_last.nonzero().flatten().tolist()}
    assert names == {"w0"}  # word 4
    captioner.count_words(torch.tensor(rows[1:]))
    assert not captioner.never_last.any()  # one of 200 is not fewer than one of 200
    captioner.count_words(torch.tensor([[START, 4, 5, 6, END]]))  # no caption is surely whole
    assert not captioner.never_last.any()
    older = {name: tensor for name, tensor in captioner.state_dict().items() if name != "never_last"}
    tiny_captioner("lstm").load_state_dict(older)  # files of earlier versions
