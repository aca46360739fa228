"""A data set of boxes in the layout of PASCAL VOC, small enough to write in a test."""

import numpy as np
from PIL import Image

OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_image(tree, name, objects, size=(48, 32), text=None):
    """A JPEG, bright at each object (kind, difficult, x1, y1, x2, y2), pixels counted from 1."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    for _, _, x1, y1, x2, y2 in objects:
        pixels[int(y1) - 1 : int(y2), int(x1) - 1 : int(x2)] = 220
    Image.fromarray(pixels).save(tree / "JPEGImages" / f"{name}.jpg", quality=95)
    inside = "".join(OBJECT.format(*each) for each in objects)
    text = text or f"<annotation><filename>{name}.jpg</filename>{inside}</annotation>"
    (tree / "Annotations" / f"{name}.xml").write_text(text)


def write_list(tree, name, images):
    (tree / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images) + "\n")


def write_patches(tree, train=6, test=4):
    """Images of 48 x 32 px with one patch of 16 px each, class `patch`, at places of its own."""
    names = {"train": [], "test": []}
    for number in range(train + test):
        x, y = 1 + 7 * number % 32, 1 + 5 * number % 16
        names["train" if number < train else "test"].append(f"i{number}")
        write_image(tree, f"i{number}", [("patch", 0, x, y, x + 15, y + 15)])
    for part, images in names.items():
        write_list(tree, part, images)
