"""What test_distributed.py runs under torchrun, and in one process. Each process saves its results to a file."""

import sys
from dataclasses import replace

import torch
from helpers import CELLS, random_captions, tiny_captioner

from rnn_lstm_captioning.model.encoder import ImageEncoder
from rnn_lstm_captioning.training import distributed
from rnn_lstm_captioning.training.batches import Pairs
from rnn_lstm_captioning.training.features import FeaturePass, encode_all
from rnn_lstm_captioning.training.settings import TrainingSettings
from rnn_lstm_captioning.training.trainer import Trainer, evaluate

SETTINGS = TrainingSettings(
    optimizer="adam", weight_decay=0.0, batch_size=4, epochs=1, schedule="constant", clip=0, quiet=True
)


def gradients(cell, num_rows):
    """The gradients of one step on a joint batch of ``num_rows`` captions, and the loss after it."""
    torch.manual_seed(0)
    captioner = tiny_captioner(cell).float()
    captioner.image_encoder.requires_grad_(False)
    features = torch.randn(num_rows, 6, 2, 2)
    pairs = Pairs(random_captions(num_rows, 9, 12), torch.arange(num_rows), features=features)
    trainer = Trainer(captioner, pairs, pairs, SETTINGS)
    trainer.train_one_batch(torch.arange(num_rows))
    loss = evaluate(captioner, pairs, 2)
    return {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}, loss


def gradients_of_finetuning(num_rows):
    """The same with images instead of features, two captions for each, and a CNN that is trained too."""
    torch.manual_seed(3)
    captioner = tiny_captioner("attn").float()
    images = torch.rand(4, 3, 64, 64)
    pairs = Pairs(random_captions(8, 9, 12), torch.arange(8) // 2, images=images, together=True)
    trainer = Trainer(captioner, pairs, pairs, replace(SETTINGS, encoder_learning_rate=1e-4))
    trainer.train_one_batch(torch.arange(num_rows))
    return {name: p.grad for name, p in captioner.named_parameters()}, evaluate(captioner, pairs, 2)


def repeats():
    """Whether a step gives the same gradient, bit for bit, when it is repeated."""
    torch.manual_seed(0)
    captioner = tiny_captioner("attn", V=50, D=20, H=30).float()
    captioner.image_encoder.requires_grad_(False)
    pairs = Pairs(random_captions(9, 9, 50), torch.arange(9), features=torch.randn(9, 6, 2, 2))
    trainer, found = Trainer(captioner, pairs, pairs, replace(SETTINGS, learning_rate=1e-30)), []
    for _ in range(3):
        trainer.train_one_batch(torch.arange(9))
        found.append([p.grad.clone() for p in captioner.parameters() if p.grad is not None])
    return all(torch.equal(a, b) for again in found[1:] for a, b in zip(found[0], again))


def main(folder):
    with distributed.process_group("cpu"):
        found = {f"{cell} {rows}": gradients(cell, rows) for cell in CELLS for rows in (1, 2, 7)}
        found |= {f"finetuned {rows}": gradients_of_finetuning(rows) for rows in (3, 8)}
        found["repeats"] = repeats()
        torch.manual_seed(5)
        distributed.seed_per_rank(5)
        found["random"] = distributed.all_gather(torch.rand(()).item())
        torch.manual_seed(1)
        encoder = ImageEncoder(False, name="squeezenet1_1")
        four = FeaturePass(batch_size=4, progress=False)
        images = torch.randint(0, 256, (23, 3, 64, 64), dtype=torch.uint8)
        found["features"] = encode_all(encoder, images, four, f"{folder}/cache{distributed.world_size()}").clone()
        found["uncached"] = encode_all(encoder, images, four)
        found["gathered"] = distributed.all_gather([distributed.rank()])
        found["first"] = distributed.from_rank_0(lambda: distributed.rank() + 10)
        found["any"] = [distributed.any_rank(distributed.rank() == 1), distributed.any_rank(False)]
        shares = distributed.all_gather(distributed.shard(torch.arange(5)).tolist())
        found["shares"] = [row for share in shares for row in share]
        torch.save(found, f"{folder}/of_{distributed.world_size()}_{distributed.rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
