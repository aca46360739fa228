"""Test images with what a detector found in them, as the step `detect` has drawn them.

The picture is that of the first row with one, of its first seed: the file of photographs is shown
as it is, and the boxes in it stand beside it as numbers.
"""

import base64
from collections.abc import Iterator

from peregrine.config.study import Figure
from peregrine.reporting.marks import Box, Source


def _first(figure: Figure, source: Source) -> tuple[str, int, dict, bytes] | None:
    for row in figure.rows:
        found = source.detections(row)
        if found:
            return (source.cells[row].label, *found)
    return None


def boxes(figure: Figure, source: Source) -> Iterator[Box]:
    """Every box in the picture: objects as annotated, and what was found, with its score."""
    label, seed, found, _ = _first(figure, source) or ("", 0, {"shown": []}, b"")
    panel = figure.panels[0].label
    for shown in found["shown"]:
        for place, *edges in shown["objects"]:
            yield Box(panel, label, "object", seed, shown["image"], place, *edges, "")
        for (place, *edges), score in zip(shown["found"], shown["scores"], strict=True):
            yield Box(panel, label, "seed", seed, shown["image"], place, *edges, score)


def sheet(figure: Figure, source: Source) -> dict[str, bytes]:
    """{"svg": bytes, "png": bytes} of the photographs; empty where no row has any."""
    found = _first(figure, source)
    if found is None:
        return {}
    png = found[3]
    # Width and height stand in bytes 16 to 24 of every PNG (ISO/IEC 15948, section 11.2.2).
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<image width="{width}" height="{height}"'
        f' xlink:href="data:image/png;base64,{base64.b64encode(png).decode()}"/></svg>\n'
    )
    return {"svg": svg.encode(), "png": png}
