"""CaptioningRNN: an image encoder, a recurrent cell, and a projection to the vocabulary."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..cells import CELLS
from ..cells.layers import Affine, BatchNorm, WordEmbedding
from ..cells.losses import projected_softmax_loss
from ..data.vocabulary import END, NULL, SPECIAL_TOKENS
from ..errors import InputError
from .decoding import greedy_search
from .encoder import ImageEncoder
from .settings import IMAGE_INPUTS, IMAGE_NORMS, ModelSettings

LAST = 0.005  # a word may end a caption if it is the last word in at least this share of its occurrences
REPEATED = 0.05  # a word may be repeated if at least this share of the captions that have it have it twice


class CaptioningRNN(nn.Module):
    """Writes a caption for an image, word by word.

    A cell that does not use the grid reads the average-pooled features once, through an affine map: as its initial
    hidden state (``image_input`` "h0": Karpathy and Fei-Fei 2015), or as a word before the first word ("first-token":
    Vinyals et al. 2015, "Show and Tell"). A cell that uses the grid gets every region, projected to A (N, H, grid_h,
    grid_w), and reads all regions again before every word (Xu et al. 2015).

    Args:
        word_to_idx: word -> index, V words. To write captions, it must be a bijection onto 0 .. V-1, with ``<NULL>``,
            ``<START>``, ``<END>``, ``<UNK>`` as 0 .. 3; for the loss alone, any indices will do.
        input_dim: C, the channels of the features; None: those of the encoder.
        wordvec_dim: D; hidden_dim: H; cell_type: a name in ``cells.CELLS``: "rnn", "lstm", "gru" or "attn".
        image_encoder_pretrained: without an image_encoder, load torchvision's ImageNet weights.
        ignore_index: a word index that adds neither loss nor gradient; usually ``<NULL>``.
        image_encoder: an :class:`ImageEncoder`; None: a new RegNetX-400MF.
        image_input: "h0" or "first-token"; image_norm: "none", or "batchnorm" after the affine map. With a cell that
            uses the grid they must be "h0" and "none".
        dropout: the probability that training sets an element of the word vectors or hidden states to zero, outside
            the recurrence (Zaremba, Sutskever and Vinyals 2014).
        feature_dropout: the same for the features: the model soon memorises a few thousand images.
    Attributes: written_once and never_last, bool (V,): the words that captions have once, and those with which none
        ends, as :meth:`count_words` found; for ``Decoding(no_repeats=True, no_bad_endings=True)``.
    Raises: InputError (a ValueError) for an unknown cell_type, image_input or image_norm, a size below 1, or an
        input_dim that is not that of the encoder.
    """

    feature_mean: Tensor
    feature_std: Tensor
    written_once: Tensor
    never_last: Tensor

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int | None = None,
        wordvec_dim: int = 256,
        hidden_dim: int = 512,
        cell_type: str = "rnn",
        image_encoder_pretrained: bool = True,
        ignore_index: int | None = None,
        *,
        image_encoder: ImageEncoder | None = None,
        image_input: str = "h0",
        image_norm: str = "none",
        dropout: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        known_values = {"cell_type": CELLS, "image_input": IMAGE_INPUTS, "image_norm": IMAGE_NORMS}
        for name, value in (("cell_type", cell_type), ("image_input", image_input), ("image_norm", image_norm)):
            if value not in known_values[name]:
                raise InputError(f"{name} is {value!r}, wanted one of {', '.join(known_values[name])}")
        if not (0 <= dropout < 1 and 0 <= feature_dropout < 1):
            raise InputError(f"dropout is {dropout} and feature_dropout {feature_dropout}, wanted in [0, 1)")
        if min(wordvec_dim, hidden_dim) < 1:
            raise InputError(f"wordvec_dim is {wordvec_dim} and hidden_dim {hidden_dim}, wanted at least 1")
        if CELLS[cell_type].uses_grid and (image_input, image_norm) != ("h0", "none"):
            raise InputError(
                f"{cell_type} reads the grid at every step: image_input must be h0 and image_norm must be none"
            )
        self.idx_to_word = sorted(word_to_idx, key=lambda word: word_to_idx[word])
        self.word_to_idx, self.cell_type, self.ignore_index = word_to_idx, cell_type, ignore_index
        self.wordvec_dim, self.hidden_dim, self.image_input = wordvec_dim, hidden_dim, image_input
        self.image_encoder = image_encoder or ImageEncoder(image_encoder_pretrained)
        C, V = self.image_encoder.out_channels, len(word_to_idx)
        if input_dim not in (None, C):
            raise InputError(
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
        self.register_buffer("written_once", torch.zeros(V, dtype=torch.bool))
        self.register_buffer("never_last", torch.zeros(V, dtype=torch.bool))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("written_once", "never_last"):  # older files have none
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ------------------------------------------------------------------------------- training

    def encode(self, images: Tensor) -> Tensor:
        """images (N, 3, S, S), uint8 or float in [0, 1] -> features (N, C, grid_h, grid_w)."""
        return self.image_encoder(images)

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """The loss of captions (N, L) given images (N, 3, S, S): ``loss(encode(images), captions)``."""
        return self.loss(self.encode(images), captions)

    def loss(self, features: Tensor, captions: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """The mean loss per caption, a scalar in nats; a caption's loss is the sum of -log p(word) over its words.

        Args: features (M, C, grid_h, grid_w); captions int64 (N, L), ``<START> words <END>``, padded with ``<NULL>``;
            image_of_caption int64 (N,), the row of features that each caption describes; None: M = N, row by row.
        """
        h = self.hidden_states(features, captions[:, :-1], image_of_caption)
        projection = self.vocabulary_projection
        return projected_softmax_loss(h, captions[:, 1:], projection.W, projection.b, self.ignore_index)

    def hidden_states(self, features: Tensor, words: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """features (M, C, grid_h, grid_w), words int64 (N, T) -> h (N, T, H). An image is projected once, and the rows
        are then repeated for its captions; see :meth:`loss`."""
        image = self.project_features(features)
        if image_of_caption is not None:
            image = image[image_of_caption]
        return self.read(self.dropout(self.word_embedding(words)), image)

    def read(self, x: Tensor, image: Tensor) -> Tensor:
        """Word vectors x (N, T, D) and the projected features of :meth:`project_features` -> h (N, T, H)."""
        if self.image_input == "first-token":
            x = torch.cat([image.unsqueeze(1).to(x.dtype), x], dim=1)  # (N, 1 + T, D)
            h = self.cell(x, x.new_zeros(len(x), self.hidden_dim))
            return self.dropout(h[:, 1:])  # drop the step that reads the image: <START> predicts the first word
        return self.dropout(self.cell(x, image))

    def project_features(self, features: Tensor) -> Tensor:
        """features (N, C, grid_h, grid_w) -> what the cell reads: h0 (N, H); with "first-token" the first input (N, D);
        for a cell that uses the grid A (N, H, grid_h, grid_w)."""
        if features.dim() != 4 or features.shape[1] != self.image_encoder.out_channels or 0 in features.shape:
            wanted = f"(N, {self.image_encoder.out_channels}, grid_h, grid_w)"
            raise ValueError(f"features has shape {tuple(features.shape)}, wanted (N, C, grid_h, grid_w) = {wanted}")
        features = self.feature_dropout((self.pool(features) - self.feature_mean) / self.feature_std)
        if not self.cell.uses_grid:
            return self.image_norm(self.feature_projection(features.flatten(1)))
        rows = self.feature_projection(features.flatten(2).transpose(1, 2))  # (N, G, H)
        return rows.transpose(1, 2).unflatten(2, features.shape[2:])

    def pool(self, features: Tensor) -> Tensor:
        """The unchanged features for a cell that uses the grid; for others, the mean over the grid (N, C, 1, 1)."""
        features = features.to(self.feature_mean.dtype)
        return features if self.cell.uses_grid else features.mean((2, 3), keepdim=True)

    @torch.no_grad()
    def standardize(self, features: Tensor) -> None:
        """From now on, shift and scale each channel that the cell reads, to mean 0 and variance 1.

        The features of all images have a large mean in common. Without this, a training step moves all images in the
        same direction. Args: features (M, C, grid_h, grid_w) of training images.
        """
        features = self.pool(features[:: max(1, len(features) // 1000)].to(self.feature_mean.device))
        self.feature_mean.copy_(features.mean((0, 2, 3)).view(-1, 1, 1))
        self.feature_std.copy_(features.std((0, 2, 3), correction=0).clamp(min=1e-3).view(-1, 1, 1))

    @torch.no_grad()
    def count_words(self, captions: Tensor) -> None:
        """From now on, ``written_once`` has the words that captions do not repeat: of the captions that have the word,
        fewer than one in twenty have it twice. ``never_last`` has the words that hardly ever end a caption: they are
        its last word in fewer than one of two hundred occurrences. Args: captions int64 (R, L) of training images."""
        V = len(self.word_to_idx)
        rows = torch.arange(len(captions), device=captions.device).unsqueeze(1)
        words, counts = (rows * V + captions).unique(return_counts=True)  # of each caption, its different words
        having, repeating = (torch.bincount(chosen % V, minlength=V) for chosen in (words, words[counts > 1]))
        once = repeating < REPEATED * having
        once[: len(SPECIAL_TOKENS)] = False
        self.written_once.copy_(once)
        whole = captions[captions[:, -1] == NULL]  # the longest captions may have been cut
        occurrences = torch.bincount(whole.flatten(), minlength=V)
        last = torch.bincount(whole[:, :-1][whole[:, 1:] == END], minlength=V)
        never = last + 1 < LAST * (occurrences + 1)  # one is added: a rare word may end a caption
        never[: len(SPECIAL_TOKENS)] = False
        self.never_last.copy_(never)

    def scores(self, features: Tensor, words: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """Teacher forcing: words int64 (N, T) that begin with ``<START>`` -> scores of each next word (N, T, V)."""
        return self.vocabulary_projection(self.hidden_states(features, words, image_of_caption))

    def log_probs(self, features: Tensor, captions: Tensor, image_of_caption: Tensor | None = None) -> Tensor:
        """The log-probability of each caption given its image, (N,); the arguments are those of ``loss``."""
        words = captions[:, 1:]
        scores = self.scores(features, captions[:, :-1], image_of_caption)  # (N, T, V)
        log_probs = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=2)
        of_words = log_probs.gather(2, words.unsqueeze(2)).squeeze(2)  # (N, T)
        return of_words.where(words != NULL, 0).sum(dim=1)

    # --------------------------------------------------------------------------- one word at a time

    def start(self, features: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The state before the first word, and what the cell reads of the image; all tensors have N rows."""
        image = self.project_features(features)
        if self.image_input == "first-token":  # the cell reads the image like a word
            state = self.cell.start(image.new_zeros(len(image), self.hidden_dim))
            state, _ = self.cell.step(image, state, image)
            return state, image
        return self.cell.start(image), image

    def step(
        self, words: Tensor, state: tuple[Tensor, ...], image: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """words int64 (N,) -> scores (N, V), the next state, attn_weights (N, grid_h, grid_w) or None."""
        state, attn_weights = self.cell.step(self.word_embedding(words), state, image)
        return self.vocabulary_projection(state[0]), state, attn_weights

    def sample(self, images: Tensor, max_length: int = 15) -> Tensor | tuple[Tensor, Tensor]:
        """Greedy captions: at every step the most probable word, never ``<NULL>``, ``<START>`` or ``<UNK>``.

        Args: images (N, 3, S, S), uint8 or float in [0, 1].
        Returns: captions int64 (N, max_length): column 0 is the first word, and everything after
            ``<END>`` is ``<NULL>``. With attention, also attn_weights (N, max_length, grid_h, grid_w),
            which sum to 1 at every step up to ``<END>`` and are 0 after it.
        """
        check_vocabulary(self.word_to_idx)
        with evaluating(self):
            captions, _, attn_weights = greedy_search(self, self.encode(images), max_length)
        return captions if attn_weights is None else (captions, attn_weights)


def check_vocabulary(word_to_idx: Mapping[str, int]) -> None:
    """Raises: InputError if captions can't be written with a vocabulary."""
    words = sorted(word_to_idx, key=lambda word: word_to_idx[word])
    if words[:4] != SPECIAL_TOKENS or sorted(word_to_idx.values()) != list(range(len(words))):
        raise InputError(f"word_to_idx must map {' '.join(SPECIAL_TOKENS)} to 0..3 and its V words onto 0..V-1")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block, the module is in eval mode and autograd is off; afterwards, its mode is as before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(modes[0][1])
        for part, training in modes:  # a part can have another mode than the whole
            if part.training != training:
                part.train(training)


# ----------------------------------------------------------------------- a captioner from its settings


def build_captioner(
    settings: ModelSettings,
    word_to_idx: Mapping[str, int],
    encoder_weights: str | Path = "none",
    verbose: bool = False,
) -> CaptioningRNN:
    """The captioner that the settings describe.

    Args: settings; word_to_idx; encoder_weights: "imagenet" (torchvision's, downloaded once), "none" (random weights;
        also if you load a checkpoint's weights next), or the path of a state dict; verbose: show a download's progress.
    Raises: InputError if a setting or the vocabulary can't be used, or the weights can't be loaded.
    """
    check_vocabulary(word_to_idx)
    encoder = ImageEncoder(
        pretrained=encoder_weights == "imagenet",
        verbose=verbose,
        name=settings.encoder,
        weights_file=None if encoder_weights in ("imagenet", "none") else encoder_weights,
        frozen=not settings.finetune_encoder,
        finetune_from=settings.finetune_from,
        freeze_batchnorm=settings.freeze_batchnorm,
        image_size=settings.image_size,
        layer=settings.encoder_layer,
    )
    return CaptioningRNN(
        word_to_idx,
        wordvec_dim=settings.wordvec_dim,
        hidden_dim=settings.hidden_dim,
        cell_type=settings.cell,
        ignore_index=NULL,
        image_encoder=encoder,
        image_input=settings.image_input,
        image_norm=settings.image_norm,
        dropout=settings.dropout,
        feature_dropout=settings.feature_dropout,
    )


def settings_of(captioner: CaptioningRNN) -> ModelSettings:
    """The settings from which :func:`build_captioner` builds such a captioner."""
    return ModelSettings(
        cell=captioner.cell_type,
        encoder=captioner.image_encoder.name,
        encoder_layer=captioner.image_encoder.layer,
        finetune_encoder=not captioner.image_encoder.frozen,
        finetune_from=captioner.image_encoder.finetune_from,
        freeze_batchnorm=captioner.image_encoder.freeze_batchnorm,
        image_size=captioner.image_encoder.image_size,
        image_input=captioner.image_input,
        image_norm="batchnorm" if isinstance(captioner.image_norm, BatchNorm) else "none",
        hidden_dim=captioner.hidden_dim,
        wordvec_dim=captioner.wordvec_dim,
        dropout=captioner.dropout.p,
        feature_dropout=captioner.feature_dropout.p,
    )
