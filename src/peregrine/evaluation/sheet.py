"""Test images with their boxes, side by side in one PNG. Pillow only, so equal boxes, equal bytes.

Objects are drawn in white on black; what is found in the colour of its class, with its name and
score. Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which stay apart for any eye.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from peregrine.evaluation.average_precision import Found, Truth

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
COLUMNS = 3
WIDTH = 420
"""px of each image on the sheet."""
GAP = 8


def sheet(
    images: Sequence[np.ndarray],
    truths: Sequence[Truth],
    found: Sequence[Found],
    classes: Sequence[str],
) -> bytes:
    """PNG of images uint8 [h, w, 3] in rows of three; without images a single white pixel."""
    tiles = [_tile(*each, classes) for each in zip(images, truths, found, strict=True)]
    if not tiles:
        return _png(Image.new("RGB", (1, 1), "white"))
    columns = min(COLUMNS, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    size = columns * (WIDTH + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)
    page, top = Image.new("RGB", size, "white"), 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            page.paste(tile, (column * (WIDTH + GAP), top))
        top += height + GAP
    return _png(page)


def _tile(image: np.ndarray, truth: Truth, found: Found, classes: Sequence[str]) -> Image.Image:
    times = WIDTH / image.shape[1]
    tile = Image.fromarray(image).resize((WIDTH, max(1, round(image.shape[0] * times))))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    for box in truth.boxes:
        edges = [round(float(edge) * times) for edge in box]
        draw.rectangle(edges, outline="black", width=3)
        draw.rectangle([edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1], outline="white")
    for box, label, score in reversed(list(zip(*found, strict=True))):  # the best on top
        edges = [round(float(edge) * times) for edge in box]
        colour = COLOURS[(int(label) - 1) % len(COLOURS)]
        draw.rectangle(edges, outline=colour, width=2)
        name = f"{classes[int(label) - 1]} {score:.2f}"
        corner = edges[0] + 2, edges[1] + 1
        draw.rectangle(draw.textbbox(corner, name, font=font), fill=colour)
        draw.text(corner, name, fill="black", font=font)
    return tile


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
