"""Draws architecture.svg, the floors of the package: python docs/images/make_architecture.py"""

from html import escape
from pathlib import Path

# From the roof down: colour, and the rooms with what they are for, of one line or two.
FLOORS: tuple[tuple[str, dict[str, str]], ...] = (
    ("#f3dcd4", {"cli": "the commands: arguments,|one call, what is printed"}),
    ("#f6e3cf", {"app": "the web page"}),
    ("#f6e3cf", {"pods": "a training compiled for a pod that is not there: does it fit?"}),
    ("#f7ecc8", {"training": "losses, step, loop, checkpoints, export"}),
    (
        "#e9efcf",
        {
            "caption": "captions by LLaVA, by a server,|from measurements",
            "evaluation": "metrics, protocols,|reports",
            "preparation": "records, pairs and embeddings,|made beforehand",
        },
    ),
    ("#d9edd7", {"inference": "from pixels and captions to restored pixels; whole folders; large pictures"}),
    ("#d3ebe4", {"weights": "PyTorch's names and ours, files of every kind, model folders"}),
    ("#d5e5f0", {"sharding": "which device holds what", "distributed": "several processes"}),
    ("#d5e5f0", {"config": "every setting of sampling and training"}),
    ("#dcdff2", {"data": "photographs and captions become batches"}),
    (
        "#e4dcf0",
        {
            "models": "the networks and|their attention kernels",
            "diffusion": "noise schedule, samplers,|guidance",
            "images": "pictures in and out,|of any format",
        },
    ),
    (
        "#e8e8e8",
        {"serialisation": "settings from JSON", "json_files": "JSON in and out", "locks": "one process at a time"},
    ),
    ("#e8e8e8", {"files": "written whole or not at all"}),
    ("#e8e8e8", {"buckets": "paths in gs:// and s3://, local copies of what is there, uploads, locks"}),
    (
        "#e8e8e8",
        {
            "errors": "what a person|can put right",
            "machine": "caches and processes|of this machine",
            "assets": "what ships|besides code",
            "version": "of the|package",
        },
    ),
)
DOORS = (("train.py, sample.py,", "convert_weights.py"), ("python -m", "xpsr_jax.NAME"))
WIDTH, HEIGHT, GAP, LEFT, RIGHT, ROOF = 1080, 62, 8, 40, 980, 150
LINE = 18
ARROW = 'fill="none" stroke="#555" stroke-width="2" marker-end="url(#head)"'
HEAD = (
    '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M 0 0 L 10 5 L 0 10 Z" fill="#555"/></marker>'
)


def text(x: float, y: float, words: str, *, name: bool = False, mono: bool = False) -> str:
    """A line around x; a room's name is larger than what is said of it."""
    family = "'DejaVu Sans Mono', monospace" if name or mono else "'DejaVu Sans', Verdana, sans-serif"
    style = 'font-size="17" font-weight="bold"' if name else 'font-size="14"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-family="{family}" {style}>{escape(words)}</text>'


def room(middle: float, y: float, name: str, purpose: list[str]) -> list[str]:
    """Words around the middle, the first line at y."""
    lines = (text(middle, y + LINE * i, line) for i, line in enumerate(purpose, 1))
    return [text(middle, y, name, name=True), *lines]


def roof(colour: str, rooms: dict[str, str]) -> list[str]:
    ((name, purpose),) = rooms.items()
    middle = (LEFT + RIGHT) / 2
    outline = f"M {LEFT - 20} {ROOF} L {middle:g} 20 L {RIGHT + 20} {ROOF} Z"
    shapes = [f'<path d="{outline}" fill="{colour}" stroke="#555" stroke-linejoin="round"/>']
    shapes += room(middle, ROOF - 58, name, purpose.split("|"))
    for x, side, lines in ((150, 1, DOORS[0]), (870, -1, DOORS[1])):
        shapes += [text(x, 30 + LINE * i, line, mono=True) for i, line in enumerate(lines)]
        shapes.append(f'<path d="M {x + 60 * side} 58 l {60 * side} 24" {ARROW}/>')
    return shapes


def floor(y: int, colour: str, rooms: dict[str, str]) -> list[str]:
    width = (RIGHT - LEFT - GAP * (len(rooms) - 1)) / len(rooms)
    shapes = []
    for i, (name, purpose) in enumerate(rooms.items()):
        x, lines = LEFT + i * (width + GAP), purpose.split("|")
        place = f'x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}"'
        shapes.append(f'<rect {place} rx="4" fill="{colour}" stroke="#555"/>')
        shapes += room(x + width / 2, y + HEIGHT // 2 + 6 - LINE // 2 * len(lines), name, lines)
    return shapes


def draw() -> str:
    shapes, y = roof(*FLOORS[0]), ROOF + GAP
    for colour, rooms in FLOORS[1:]:
        shapes += floor(y, colour, rooms)
        y += HEIGHT + GAP
    stairs = RIGHT + 42
    shapes.append(f'<path d="M {stairs} {ROOF + GAP} V {y - GAP}" {ARROW}/>')
    label = text(0, 0, "imports")
    shapes.append(f'<g transform="translate({stairs + 18} {(ROOF + y) / 2:g}) rotate(90)">{label}</g>')
    size = f'viewBox="0 0 {WIDTH} {y + GAP}" width="{WIDTH}" height="{y + GAP}"'
    label = "The floors of xpsr_jax, from cli under the roof down to errors in the cellar"
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size} fill="#222" role="img" aria-label="{label}">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([begin, f"<defs>{HEAD}</defs>", ground, *shapes, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw())
