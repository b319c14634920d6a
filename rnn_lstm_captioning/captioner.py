"""CaptioningRNN: an image encoder, a recurrent cell, and a projection to the vocabulary."""

import torch
from torch import nn

from .cells import LSTM, RNN, AttentionLSTM, dot_product_attention
from .decoding import greedy_search
from .encoder import ImageEncoder
from .layers import Affine, BatchNorm, WordEmbedding, evaluating, projected_softmax_loss
from .vocabulary import NULL, SPECIAL_TOKENS

CELLS = {"rnn": RNN, "lstm": LSTM, "attn": AttentionLSTM}
IMAGE_INPUTS = ("h0", "first-token")
IMAGE_NORMS = ("none", "batchnorm")


class CaptioningRNN(nn.Module):
    """Writes a caption for a picture, word by word.

    "rnn" and "lstm" hear of the average-pooled features once, through an affine map: as their initial
    hidden state (``image_input`` "h0": Karpathy and Fei-Fei 2015) or as a word before the first
    ("first-token": Vinyals et al. 2015, "Show and Tell"). "attn" projects every grid cell to A (N, H,
    grid_h, grid_w), starts from its mean and looks at it again before every word (Xu et al. 2015).

    Args:
        word_to_idx: dict, word -> index, a bijection onto 0 .. V-1, with ``<NULL>``, ``<START>``,
            ``<END>``, ``<UNK>`` as 0 .. 3.
        input_dim: C, the channels of the features; None: the encoder's.
        wordvec_dim: D; hidden_dim: H; cell_type: "rnn", "lstm" or "attn".
        image_encoder_pretrained: take torchvision's ImageNet weights.
        ignore_index: a word index that adds neither loss nor gradient (``<NULL>``, usually).
        image_encoder: an :class:`ImageEncoder`, in place of a new RegNetX-400MF.
        dropout: the part of the word vectors' and the hidden states' elements that is zeroed in
            training, outside the recurrence (Zaremba, Sutskever and Vinyals 2014).
        feature_dropout: the same for the features; a few thousand pictures are soon known by heart.
        image_input: "h0" or "first-token"; image_norm: "none", or "batchnorm" after the affine map.
            For "attn" they must be "h0" and "none".
    Raises: ValueError for an unknown cell_type, image_input or image_norm, a vocabulary without the
        special tokens, or an input_dim that is not the encoder's.
    """

    def __init__(
        self,
        word_to_idx,
        input_dim=None,
        wordvec_dim=256,
        hidden_dim=512,
        cell_type="rnn",
        image_encoder_pretrained=True,
        ignore_index=None,
        *,
        image_encoder=None,
        dropout=0.0,
        feature_dropout=0.0,
        image_input="h0",
        image_norm="none",
    ):
        super().__init__()
        for name, value, known in (
            ("cell_type", cell_type, CELLS),
            ("image_input", image_input, IMAGE_INPUTS),
            ("image_norm", image_norm, IMAGE_NORMS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, wanted one of {', '.join(known)}")
        if cell_type == "attn" and (image_input, image_norm) != ("h0", "none"):
            raise ValueError("image_input and image_norm are for rnn and lstm; attn looks at the grid at every step")
        self.idx_to_word = sorted(word_to_idx, key=word_to_idx.get)
        if self.idx_to_word[:4] != SPECIAL_TOKENS or sorted(word_to_idx.values()) != list(range(len(word_to_idx))):
            raise ValueError(f"word_to_idx must map {' '.join(SPECIAL_TOKENS)} to 0..3 and its V words onto 0..V-1")
        self.word_to_idx, self.cell_type, self.ignore_index = word_to_idx, cell_type, ignore_index
        self.image_input = image_input
        self.image_encoder = image_encoder or ImageEncoder(image_encoder_pretrained)
        C, V = self.image_encoder.out_channels, len(word_to_idx)
        if input_dim not in (None, C):
            raise ValueError(
                f"input_dim is {input_dim}, but the features of {self.image_encoder.name} have {C} channels"
            )
        image_dim = wordvec_dim if image_input == "first-token" else hidden_dim
        self.feature_projection = Affine(C, image_dim)
        self.image_norm = BatchNorm(image_dim, momentum=0.01) if image_norm == "batchnorm" else nn.Identity()
        self.word_embedding = WordEmbedding(V, wordvec_dim)
        self.cell = CELLS[cell_type](wordvec_dim, hidden_dim)
        self.vocabulary_projection = Affine(hidden_dim, V)
        self.dropout, self.feature_dropout = nn.Dropout(dropout), nn.Dropout(feature_dropout)
        self.register_buffer("feature_mean", torch.zeros(C, 1, 1))
        self.register_buffer("feature_std", torch.ones(C, 1, 1))

    def encode(self, images):
        """images (N, 3, S, S), uint8 or float in [0, 1] -> features (N, C, grid_h, grid_w)."""
        return self.image_encoder(images)

    @torch.no_grad()
    def standardize(self, features):
        """From now on, shift and scale what the cell sees of each channel to mean 0 and variance 1.

        Without it a CNN's features have a large common mean, along which every step of training
        moves all images at once. Args: features (M, C, grid_h, grid_w) of training images.
        """
        features = self.seen_by_cell(features[:: max(1, len(features) // 1000)].to(self.feature_mean.device))
        self.feature_mean.copy_(features.mean((0, 2, 3)).view(-1, 1, 1))
        self.feature_std.copy_(features.std((0, 2, 3), correction=0).clamp(min=1e-3).view(-1, 1, 1))

    def forward(self, images, captions):
        """The loss of captions (N, L) given images (N, 3, S, S): ``loss(encode(images), captions)``."""
        return self.loss(self.encode(images), captions)

    def loss(self, features, captions):
        """The mean loss of a caption, a scalar in nats: how badly each next word was foreseen.

        Args: features (N, C, grid_h, grid_w); captions int64 (N, L), ``<START> words <END>`` padded.
        """
        h = self.hidden_states(features, captions[:, :-1])
        projection = self.vocabulary_projection
        return projected_softmax_loss(h, captions[:, 1:], projection.W, projection.b, self.ignore_index)

    def log_probs(self, features, captions):
        """The log-probability of each caption given its image, (N,); the arguments are those of ``loss``."""
        words = captions[:, 1:]
        scores = self.scores(features, captions[:, :-1])  # (N, T, V)
        log_probs = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=2)
        of_words = log_probs.gather(2, words.unsqueeze(2)).squeeze(2)  # (N, T)
        return of_words.where(words != NULL, 0).sum(dim=1)

    def scores(self, features, words):
        """Teacher forcing: words int64 (N, T), ``<START>`` first -> scores of each next word (N, T, V)."""
        return self.vocabulary_projection(self.hidden_states(features, words))

    def hidden_states(self, features, words):
        """features (N, C, grid_h, grid_w), words int64 (N, T) -> h (N, T, H)."""
        x = self.dropout(self.word_embedding(words))  # (N, T, D)
        image = self.project_features(features)
        if self.image_input == "first-token":
            x = torch.cat([image.unsqueeze(1).to(x.dtype), x], dim=1)  # (N, 1 + T, D)
            h = self.cell(x, x.new_zeros(len(x), self.cell.Wh.shape[0]))
            return self.dropout(h[:, 1:])  # no word is foreseen from the image alone: <START> comes first
        return self.dropout(self.cell(x, image))

    def project_features(self, features):
        """What the cell takes of features (N, C, grid_h, grid_w): h0 (N, H), the first token (N, D),
        or A (N, H, grid_h, grid_w) for "attn"."""
        if features.dim() != 4 or features.shape[1] != self.image_encoder.out_channels:
            wanted = f"(N, {self.image_encoder.out_channels}, grid_h, grid_w)"
            raise ValueError(f"features has shape {tuple(features.shape)}, wanted (N, C, grid_h, grid_w) = {wanted}")
        features = self.feature_dropout((self.seen_by_cell(features) - self.feature_mean) / self.feature_std)
        if self.cell_type != "attn":
            return self.image_norm(self.feature_projection(features.flatten(1)))
        rows = self.feature_projection(features.flatten(2).transpose(1, 2))  # (N, G, H)
        return rows.transpose(1, 2).unflatten(2, features.shape[2:])

    def seen_by_cell(self, features):
        """The grid for "attn"; its mean (N, C, 1, 1) for "rnn" and "lstm"."""
        features = features.to(self.feature_mean.dtype)
        return features if self.cell_type == "attn" else features.mean((2, 3), keepdim=True)

    # ------------------------------------------------------------------ one word at a time

    def begin(self, features):
        """The state before the first word, and the image that is looked at again before every word:
        two tuples of tensors whose first dimension is N."""
        image = self.project_features(features)
        if self.cell_type == "attn":
            mean = image.mean((2, 3))
            return (mean, mean), (image,)
        first_token = self.image_input == "first-token"
        h0 = image.new_zeros(len(image), self.cell.Wh.shape[0]) if first_token else image
        state = (h0,) if self.cell_type == "rnn" else (h0, torch.zeros_like(h0))
        if first_token:  # the cell reads the image as it would read a word
            state, _ = self.step(image, state, ())
        return state, ()

    def advance(self, words, state, image):
        """words int64 (N,) -> scores (N, V), the next state, attn_weights (N, grid_h, grid_w) or None."""
        state, weights = self.step(self.word_embedding(words), state, image)
        return self.vocabulary_projection(state[0]), state, weights

    def step(self, x, state, image):
        """x (N, D), a word vector or the image as the first token -> the next state, attn_weights or None."""
        if self.cell_type == "rnn":
            return (self.cell.step_forward(x, *state),), None
        if self.cell_type == "lstm":
            return self.cell.step_forward(x, *state), None
        attn, weights = dot_product_attention(state[0], *image)
        return self.cell.step_forward(x, *state, attn), weights

    def sample(self, images, max_length=15):
        """Greedy captions: at every step the most probable word, never ``<NULL>``, ``<START>``, ``<UNK>``.

        Args: images (N, 3, S, S), uint8 or float in [0, 1].
        Returns: captions int64 (N, max_length): column 0 is the first word, everything after
            ``<END>`` is ``<NULL>``. For "attn" also attn_weights (N, max_length, grid_h, grid_w),
            which sum to 1 at every step up to ``<END>`` and are 0 after it.
        """
        with evaluating(self):
            captions, _, attn_weights = greedy_search(self, self.encode(images), max_length)
        return (captions, attn_weights) if self.cell_type == "attn" else captions
