"""Writes the hostile corpus into a new folder, for inspection: python -m tests.hostile.corpus DIR [--model MODEL]

Tests make the parts that they need themselves. If a complete model folder is given, the corpus contains a hostile copy
of it for each change.
"""

import argparse
from pathlib import Path

from tests.hostile.models import CHANGES, FILES, make_model
from tests.hostile.pictures import make_pictures
from tests.hostile.texts import CAPTIONS


def write(folder: Path, model: Path | None) -> None:
    """Makes `folder`, which must not exist, and writes the corpus into it."""
    folder.mkdir()
    make_pictures(folder / "pictures")
    for kind, makers in (("captions", {name: make for name, (make, _) in CAPTIONS.items()}), ("weights", FILES)):
        (folder / kind).mkdir()
        for name, make in makers.items():
            make(folder / kind / name)
    for name, change in CHANGES.items() if model else ():
        make_model(model.absolute(), folder / "models" / name, change)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.model)
