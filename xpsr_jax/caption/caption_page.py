"""Writes one HTML file with pictures and their captions, for reviewing them."""

import base64
import collections
import html
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from xpsr_jax.caption.captions_file import content_of
from xpsr_jax.caption.sentences import count_tokens
from xpsr_jax.data.captions import CaptionRecord, read_caption_records
from xpsr_jax.data.tokens import MAX_TOKENS
from xpsr_jax.errors import UserError
from xpsr_jax.files import leads_out, write_text
from xpsr_jax.images.reading import read_image

_SIDE = 320  # longer side of a picture on the page, in pixels
_COUNTED = 20_000  # the most captions whose tokens are counted: a million captions would take half an hour

_Item = TypeVar("_Item")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.4rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td {{ padding: .15rem 1.5rem .15rem 0; vertical-align: top; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: 10px; }}
img {{ display: block; max-width: 100%; max-height: 320px; margin: 0 auto .6rem; }}
p {{ margin: .3rem 0; }}
b {{ color: #666; font-weight: 600; }}
small {{ color: #777; overflow-wrap: anywhere; }}
.cut {{ color: #777; }}
.missing {{ color: #a00; }}
</style>
<h1>{title}</h1>
<table>{summary}</table>
<main>
{figures}
</main>
</html>
"""


def write_caption_page(captions: Path, images: Path, output: Path, *, count: int = 200) -> str:
    """Writes a page with `count` images, spread evenly over the captions file.

    Args:
      captions: the captions file.
      images: the folder to which the paths in the captions file are relative. An image that cannot be read is named on
        the page.
      output: the HTML file to write.
      count: the most images to show.

    Returns: a line that says what was written.

    Raises:
      UserError: the captions cannot be read, there are none, or the page cannot be written.
    """
    records = list(read_caption_records(captions).values())
    if not records:
        raise UserError(f"{captions} has no captions")
    chosen = _spread(records, count)
    page = _PAGE.format(
        title=html.escape(captions.name),
        summary="".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for name, value in summary(records, shown=len(chosen)).items()
        ),
        figures="\n".join(_figure(record, images) for record in chosen),
    )
    write_text(page, output)
    return f"{output}: {len(chosen)} of {len(records)} captions"


def summary(records: Sequence[CaptionRecord], *, shown: int) -> dict[str, str]:
    """Facts about all captions together, as a text for each topic."""
    contents = [content for record in records if (content := content_of(record))]
    facts = {"images": f"{len(records)}, {shown} of them below"}
    if len(contents) > len(set(contents)):
        facts["with the same content as another"] = str(len(contents) - len(set(contents)))
    for level in ("high", "low"):
        texts = [record[level] for record in records if record[level].strip()]
        tokens = [count_tokens(text) for text in _spread(texts, _COUNTED)]
        over = sum(length > MAX_TOKENS for length in tokens)
        shortened = sum(f"{level}_whole" in record for record in records)
        typical = f", median {statistics.median(tokens):.0f} tokens" if tokens else ""
        counted = f" (of {len(tokens)} checked)" if len(tokens) < len(texts) else ""
        facts[f"{level}-level captions"] = (
            f"{len(texts)} ({len(set(texts))} different){typical}; longer than CLIP's {MAX_TOKENS} tokens: {shortened} "
            f"shortened to their first sentences, {over} still too long{counted}"
        )
    sources = collections.Counter(str(record.get("source", "not named")) for record in records)
    facts["written by"] = "; ".join(f"{source} ({number})" for source, number in sources.most_common())
    return facts


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` items, spread evenly from the first to the last."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))]


def _figure(record: CaptionRecord, images: Path) -> str:
    parts = [_picture(images, record["image"])]
    for level in ("high", "low"):
        parts.append(f"<p><b>{level}</b> {_text(record, level)}</p>")
    parts.append(f"<small>{html.escape(record['image'])}</small>")
    return f"<figure>{''.join(parts)}</figure>"


def _picture(images: Path, name: str) -> str:
    try:
        if leads_out(name):  # The page may be published, so it must not show other files of this machine.
            raise UserError(f"{name} cannot be read: it is not inside {images}")
        picture = Image.fromarray(read_image(images / name))
    except UserError as error:
        return f'<p class="missing">{html.escape(str(error))}</p>'
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _text(record: CaptionRecord, level: str) -> str:
    text = record[level].strip()
    if not text:
        return '<span class="missing">none</span>'
    whole = str(record.get(f"{level}_whole", text))
    left_out = f' <span class="cut">{html.escape(whole.removeprefix(text).strip())}</span>' if whole != text else ""
    return html.escape(text) + left_out
