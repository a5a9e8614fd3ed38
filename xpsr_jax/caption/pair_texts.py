"""Captions into ready-made pairs in the released layout, which has a text file for each (method §6)."""

from pathlib import Path, PurePosixPath

from tqdm import tqdm

from xpsr_jax.data.captions import read_captions
from xpsr_jax.data.offline_pairs import HIGH_HR, HIGH_LR, LOW_HR, LOW_LR, find_datasets
from xpsr_jax.errors import UserError
from xpsr_jax.files import check_writable, leads_out, write_text

_FOLDERS = {"HR": (HIGH_HR, LOW_HR), "LR": (HIGH_LR, LOW_LR)}


def write_into_pairs(captions: Path, root: Path) -> int:
    """Writes captions to the text files that training reads, replacing those that are there; empty ones are left out.

    Those of `dataset_0/LR/a.png` go to `dataset_0/highlevel_prompt/a.txt` and `dataset_0/lowlevel_prompt_q/a.txt`,
    those of HR images to the folders whose names end in `_GT`.

    Returns: how many texts were written.

    Raises:
      UserError: `root` holds no pairs, or an image is not one of them (then nothing is written); a text cannot be.
    """
    datasets = find_datasets(root)
    if not datasets:
        raise UserError(f"{root} holds no pairs (looked for dataset_*/HR and dataset_*/LR)")
    texts: dict[Path, str] = {}
    for image, caption in read_captions(captions).items():
        dataset, kind, inner = _split(image, datasets)
        if leads_out(image) or kind not in _FOLDERS or not (root / image).is_file():
            raise UserError(
                f"{captions}: {image} is no image of the pairs in {root}; caption that very folder; paths begin "
                f"with {'/'.join(filter(None, (datasets[0], 'LR')))}"
            )
        for folder, text in zip(_FOLDERS[kind], (caption.high, caption.low), strict=True):
            if text:
                texts[root / dataset / folder / inner.with_suffix(".txt")] = text
    for file, text in tqdm(texts.items(), unit="text", disable=None):
        check_writable(file.parent)
        write_text(text + "\n", file)
    return len(texts)


def _split(image: str, datasets: list[str]) -> tuple[str, str, PurePosixPath]:
    """A path's dataset ("" if there is one alone), HR or LR or something else, and the path within."""
    path = PurePosixPath(image)
    dataset = "" if datasets == [""] else path.parts[0]
    kind, *inner = path.parts[1 if dataset else 0 :] or ("",)
    return dataset, kind if dataset in datasets and inner else "", PurePosixPath(*inner)
