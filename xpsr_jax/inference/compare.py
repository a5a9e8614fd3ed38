"""Compares pictures before and after: on a web page with a slider for each pair, or side by side in one picture."""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from xpsr_jax.assets import ASSETS
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.images.picture import Picture

# Longest side of a picture on the page, in pixels. Larger pictures are reduced.
LONGEST = 1600
# Pictures up to this side are embedded without loss: the pictures "before" are small, and the browser enlarges them.
_LOSSLESS = 512

_PAGE = ASSETS / "compare.html"
_SCRIPT = """
for (const slider of document.querySelectorAll("input")) {
  const move = () => slider.parentElement.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", move);
  move();
}
"""
_FIGURE = Template("""<figure>
<figcaption>$name <small>$sizes</small></figcaption>
<div class="pair" style="--width: $width; --height: $height">
<img class="after" alt="after" src="$after">
<img class="before" alt="before" src="$before">
<span class="label left">before</span><span class="label right">after</span>
<input type="range" min="0" max="100" step="any" value="50" aria-label="Share of $name that is from before, in percent">
</div>
</figure>
""")


def write_comparison(
    file: Path, pictures: Iterable[tuple[str, Picture, Picture]], *, title: str = "Before and after"
) -> None:
    """Writes an HTML file. It appears under its name only when it is complete. Its folder is made if it is missing.

    The slider works with mouse, finger and keyboard. Colour profiles and transparency are kept, but not EXIF.

    Args:
      file: the HTML file to write.
      pictures: (name, before, after) for each pair. `before` is stretched to the size of `after`. The pairs are read
        one after the other, so they do not have to fit into memory together.

    Raises UserError if the system refuses to write.
    """
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = Template(_PAGE.read_text(encoding="utf-8")).safe_substitute(
        title=html.escape(title), script=_SCRIPT, script_hash=script_hash
    )
    head, foot = page.split("$pictures")
    check_writable(file.parent)
    # A file name may contain bytes that are not UTF-8.
    with new_file(file) as partial, partial.open("w", encoding="utf-8", errors="replace") as opened:
        opened.write(head)
        for name, before, after in pictures:
            opened.write(_figure(name, before, after))
        opened.write(foot)


def side_by_side(pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Places pictures of equal height in a row, each below its label."""
    gap, header = 8, 32
    height = next(iter(pictures.values())).shape[0]
    width = sum(picture.shape[1] + gap for picture in pictures.values()) - gap
    canvas = Image.new("RGB", (width, header + height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=18)
    left = 0
    for label, picture in pictures.items():
        canvas.paste(Image.fromarray(picture), (left, header))
        draw.text((left + picture.shape[1] / 2, header / 2), label, fill="black", font=font, anchor="mm")
        left += picture.shape[1] + gap
    return np.asarray(canvas)


def to_webp(picture: Picture, *, longest: int = LONGEST) -> bytes:
    """Encodes a picture for the browser, reduced to at most `longest` pixels per side."""
    pixels = picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=max(image.size) <= _LOSSLESS, quality=92, icc_profile=picture.icc_profile)
    return buffer.getvalue()


def _figure(name: str, before: Picture, after: Picture) -> str:
    height, width = after.rgb.shape[:2]
    sizes = " → ".join(f"{each.rgb.shape[1]} × {each.rgb.shape[0]}" for each in (before, after))
    return _FIGURE.substitute(
        name=html.escape(name),
        sizes=sizes,
        width=width,
        height=height,
        before=_data_url(to_webp(before)),
        after=_data_url(to_webp(after)),
    )


def _data_url(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
