"""The animated picture of the README: a scene whose caption changes while its objects are dragged around each other.

python -m docs.scripts.drag --checkpoint cv/attn_best.pt       # writes docs/images/drag.gif
"""

import argparse
import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import pil_to_tensor

from rnn_lstm_captioning import load_captioner
from rnn_lstm_captioning.data.scenes import BACKGROUNDS, COLOURS, SIDE, SMOOTH

from .drawing import IMAGES

FRAMES, WIDTH, TEXT = 36, 280, 62


def scene(angle: float) -> Image.Image:
    """A big red square and a small blue circle on opposite sides of the middle."""
    canvas = Image.new("RGB", (SIDE * SMOOTH, SIDE * SMOOTH), BACKGROUNDS["white"])
    draw, r = ImageDraw.Draw(canvas), 10 * SMOOTH
    half, step = 16.5 * SMOOTH, (27 * SMOOTH * math.cos(angle), 27 * SMOOTH * math.sin(angle))
    x, y = (SIDE * SMOOTH / 2 + part for part in step)
    draw.rectangle((x - half, y - half, x + half, y + half), fill=COLOURS["red"])
    x, y = (SIDE * SMOOTH / 2 - part for part in step)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS["blue"])
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a captioner of the scenes")
    captioner = load_captioner(parser.parse_args().checkpoint, "cpu")
    pictures = [scene(2 * math.pi * k / FRAMES) for k in range(FRAMES)]
    captions = captioner.caption_images(torch.stack([pil_to_tensor(picture) for picture in pictures]))
    font, frames = ImageFont.load_default(15), []
    for picture, caption in zip(pictures, captions):
        frame = Image.new("RGB", (WIDTH, WIDTH + TEXT), "white")
        frame.paste(picture.resize((WIDTH, WIDTH), Image.Resampling.LANCZOS), (0, TEXT))
        half = next((k for k in range(len(caption.words)) if len(" ".join(caption.words[:k])) > 22), len(caption.words))
        for row, words in enumerate((caption.words[:half], caption.words[half:])):
            ImageDraw.Draw(frame).text((WIDTH / 2, 18 + 24 * row), " ".join(words), "black", font, anchor="mm")
        frames.append(frame.quantize(48, dither=Image.Dither.NONE))
    frames[0].save(IMAGES / "drag.gif", save_all=True, append_images=frames[1:], duration=220, loop=0, optimize=True)
    print(f"wrote docs/images/drag.gif: {len({caption.text for caption in captions})} different captions")


if __name__ == "__main__":
    main()
