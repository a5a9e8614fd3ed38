"""Writes captions into prepared pairs in the released layout, which has one text file per caption (method §6)."""

from pathlib import Path, PurePosixPath

from tqdm import tqdm

from xpsr_jax.data.captions import read_captions
from xpsr_jax.data.offline_pairs import HIGH_HR, HIGH_LR, LOW_HR, LOW_LR, find_datasets
from xpsr_jax.errors import UserError
from xpsr_jax.files import check_writable, leads_out, write_text

_FOLDERS = {"HR": (HIGH_HR, LOW_HR), "LR": (HIGH_LR, LOW_LR)}


def write_into_pairs(captions: Path, root: Path) -> int:
    """Writes captions to the text files that training reads. Existing files are replaced. Empty captions are ignored.

    Captions of `dataset_0/LR/a.png` go to `dataset_0/highlevel_prompt/a.txt` and `dataset_0/lowlevel_prompt_q/a.txt`.
    Captions of HR images go to the folders whose names end in `_GT`.

    Returns: the number of texts written.

    Raises:
      UserError: `root` has no pairs, or an image is not one of them (in both cases nothing is written), or a text
        cannot be written.
    """
    datasets = find_datasets(root)
    if not datasets:
        raise UserError(f"{root} has no pairs (looked for dataset_*/HR and dataset_*/LR)")
    texts: dict[Path, str] = {}
    for image, caption in read_captions(captions).items():
        dataset, kind, inner = _split(image, datasets)
        if leads_out(image) or kind not in _FOLDERS or not (root / image).is_file():
            raise UserError(
                f"{captions}: {image} is not an image of the pairs in {root}; caption exactly that folder, so that "
                f"paths begin with {'/'.join(filter(None, (datasets[0], 'LR')))}"
            )
        for folder, text in zip(_FOLDERS[kind], (caption.high, caption.low), strict=True):
            if text:
                texts[root / dataset / folder / inner.with_suffix(".txt")] = text
    for file, text in tqdm(texts.items(), unit="text", disable=None):
        check_writable(file.parent)
        write_text(text + "\n", file)
    return len(texts)


def _split(image: str, datasets: list[str]) -> tuple[str, str, PurePosixPath]:
    """Splits a path into its dataset ("" if the root itself is the dataset), its kind (HR, LR, others) and the rest."""
    path = PurePosixPath(image)
    dataset = "" if datasets == [""] else path.parts[0]
    kind, *inner = path.parts[1 if dataset else 0 :] or ("",)
    return dataset, kind if dataset in datasets and inner else "", PurePosixPath(*inner)
