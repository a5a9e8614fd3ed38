"""What ships with the package besides code."""

from pathlib import Path

ASSETS = Path(__file__).parent
# The model that is used when no other is named.
TINY_MODEL = ASSETS / "tiny"
# A photograph that it never saw: lr.png, original.png, captions.jsonl.
DEMO = ASSETS / "demo"
