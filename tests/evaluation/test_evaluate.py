"""python -m xpsr_jax.evaluate with images of 40 x 40 pixels. All runs share one compiled program per protocol."""

import io
import json
import re

import cv2
import numpy as np
import pytest
from rich.console import Console

from xpsr_jax.cli import evaluate
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation import paper, report_files
from xpsr_jax.evaluation.fidelity import psnr_y, ssim_y
from xpsr_jax.evaluation.matching import SETS, match_images, name_of_set, set_folders
from xpsr_jax.evaluation.protocols import METRIC_NAMES, PROTOCOLS
from xpsr_jax.evaluation.scoring import MethodScores
from xpsr_jax.evaluation.tables import Evaluation, notes, print_scores, rows_beside

NAMES = ("a", "b10", "b9")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A set in StableSR's layout, a good and a bad method."""
    root = tmp_path_factory.mktemp("sets")
    originals = root / "RealSRVal_crop128" / "test_HR"
    rng = np.random.default_rng(0)
    for name in NAMES:
        image = cv2.GaussianBlur(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), (0, 0), 1.5)
        write(originals / f"{name}.png", image)
        write(originals.with_name("test_LR") / f"{name}.png", image[::4, ::4])
        write(root / "good" / f"{name}.png", cv2.GaussianBlur(image, (0, 0), 0.6))
        write(root / "bad" / f"{name}.png", cv2.GaussianBlur(image, (0, 0), 3))
    return root


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def as_pyiqa(decibels):
    """Converts to pyiqa's PSNR: pyiqa adds 1e-8 to the squared error of images in [0, 1]."""
    return -10 * np.log10(10 ** (-decibels / 10) + 1e-8)


@pytest.fixture(scope="module")
def report(folders):
    arguments = ["--restored", str(folders / "good"), str(folders / "bad")]
    arguments += ["--reference", str(folders / "RealSRVal_crop128"), "--output", str(folders / "report")]
    (folders / "others.json").write_text('{"SeeSR": {"psnr": 25.5, "ssim": 0.75, "musiq": 69.0}}')
    arguments += ["--beside", str(folders / "others.json")]
    assert evaluate.main([*arguments, "--json", str(folders / "s.json")]) == 0
    return folders / "report"


def test_scores_and_means_are_correct(folders, report):
    good = json.loads((folders / "s-good.json").read_text())
    assert good == json.loads((report / "scores-good.json").read_text())
    assert list(good) == ["mean", "images"]
    assert list(good["images"]) == ["a.png", "b9.png", "b10.png"]
    for name, row in good["images"].items():
        restored, original = read(folders / "good" / name), read(folders / "RealSRVal_crop128" / "test_HR" / name)
        assert row["psnr"] == pytest.approx(as_pyiqa(psnr_y(restored, original)), abs=2e-5)
        assert row["ssim"] == pytest.approx(ssim_y(restored, original), abs=1e-6)
    for name, mean in good["mean"].items():
        assert mean == pytest.approx(np.mean([row[name] for row in good["images"].values()]))
    bad = json.loads((report / "scores-bad.json").read_text())
    assert good["mean"]["psnr"] > bad["mean"]["psnr"]
    assert good["mean"]["dists"] < bad["mean"]["dists"]


def test_one_folder_has_one_file_of_exactly_two_keys(folders, capsys):
    arguments = ["--restored", str(folders / "good"), "--reference", str(folders / "RealSRVal_crop128" / "test_HR")]
    file = folders / "one.json"
    assert evaluate.main([*arguments, "--json", str(file), "--metrics", "psnr", "ssim", "--protocol", "seesr"]) == 0
    scores = json.loads(file.read_text())
    assert set(scores) == {"mean", "images"}
    restored, original = read(folders / "good" / "a.png"), read(folders / "RealSRVal_crop128" / "test_HR" / "a.png")
    inner = psnr_y(restored[4:-4, 4:-4], original[4:-4, 4:-4])
    assert scores["images"]["a.png"]["psnr"] == pytest.approx(as_pyiqa(inner), abs=2e-5)
    assert "RealSR, 3 images, protocol seesr" in " ".join(capsys.readouterr().out.split())


def test_the_page_is_self_contained_and_complete(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert page.count("<img ") == 4 * 3  # input, two methods, original of all three images
    assert "Worst" in page and "Best" in page
    assert 'data-value="' in page and "sortable" in page
    assert "SeeSR, elsewhere" in page
    markdown = (report / "report.md").read_text(encoding="utf-8")
    assert "| SeeSR | 25.50 | 0.7500 | – | – |" in markdown
    assert "| b10.png |" in markdown


def test_the_manifest_records_files_and_versions(folders, report):
    manifest = json.loads((report / "manifest.json").read_text())
    assert manifest["protocol"].startswith("xpsr: PSNR and SSIM on luma of BT.601")
    assert manifest["metrics"] == ["psnr", "ssim", "lpips", "dists"]
    assert {"xpsr_jax", "jax", "numpy"} <= set(manifest["versions"])
    assert set(manifest["weights_sha256"]) >= {"vgg16.ckpt", "alexnet.ckpt", "dists.safetensors"}
    assert len(manifest["images"]["a.png"]["good"]) == 64
    assert manifest["images"]["a.png"]["good"] != manifest["images"]["a.png"]["bad"]


def test_all_problems_of_matching_are_in_one_error(folders, tmp_path, capsys):
    image = np.zeros((40, 40, 3), np.uint8)
    for name in ("photo_1", "photo_2", "other", "turned", "broken", "tiny"):
        write(tmp_path / "HR" / f"{name}.png", image[:20, :20] if name == "tiny" else image)
    for name in ("photo_1_LR4", "photo_2", "scan", "turned", "tiny"):
        write(tmp_path / "out" / f"{name}.png", image[:20, :20] if name == "tiny" else image)
    write(tmp_path / "out" / "turned.png", image[:30])
    write(tmp_path / "out" / "photo_2.jpg", image)
    (tmp_path / "out" / "broken.png").write_text("no image")
    report = tmp_path / "report"
    arguments = ["--restored", str(tmp_path / "out"), "--reference", str(tmp_path), "--json", str(report / "s.json")]
    assert evaluate.main(arguments) == 1
    said = capsys.readouterr().err
    assert "7 images cannot be matched" in said
    for line in (
        r"too small: \S+HR/tiny.png has 20 x 20 pixels, the metrics need 31",
        r"same name twice: \S+photo_2.jpg and \S+photo_2.png",
        r"misnamed\? \S+photo_1_LR4.png is similar to \S+photo_1.png",
        r"missing: \S+other.png has no image in",
        r"extra: \S+scan.png has no original",
        r"size: \S+turned.png has 40 x 30 pixels, but its original has 40 x 40",
        r"broken.png: not an image",
    ):
        assert re.search(line, said), line
    assert not list(report.iterdir())


def test_known_layouts_and_names_of_sets(tmp_path):
    for reference, lr in (("HR", "LR"), ("test_HR", "test_LR"), ("gt", "lq")):
        folder = tmp_path / f"set of {reference}"
        (folder / reference).mkdir(parents=True)
        assert set_folders(folder) == (folder / reference, None)
        (folder / lr).mkdir()
        assert set_folders(folder) == (folder / reference, folder / lr)
    assert set_folders(tmp_path) == (tmp_path, None)
    names = {"RealSR_CenterCrop": "RealSR", "DrealSRVal_crop128": "DRealSR", "DIV2K_V2_val": "DIV2K-Val", "x": None}
    for folder, name in names.items():
        assert name_of_set(tmp_path / folder / "HR") == name


def test_scores_from_elsewhere_are_checked(tmp_path):
    file = tmp_path / "others.json"
    file.write_text('{"SeeSR": {"psnr": 25, "ssim": 0.7}}')
    assert report_files.read_others(file) == {"SeeSR": {"psnr": 25.0, "ssim": 0.7}}
    for text, problem in (
        ('{"SeeSR": [25.5]}', "SeeSR must be an object"),
        ('{"SeeSR": {"PSNR": 25.5, "ssim": 0.7}}', "SeeSR has an unknown metric: PSNR; known metrics are psnr, ssim"),
        ('{"SeeSR": {"psnr": "25"}}', "SeeSR.psnr must be a finite number, not 25"),
        ('{"SeeSR": {"psnr": 1e999}}', "SeeSR.psnr must be a finite number, not inf"),
        ('{"SeeSR": {"psnr": NaN}}', "is not valid JSON: NaN"),
        ('{"SeeSR": {"psnr": ' + "9" * 5000 + "}}", "a number of 5000 digits"),
        ('{"SeeSR": ' + "[" * 100_000, "nested too deeply"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem) as caught:
            report_files.read_others(file)
        assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_names_of_methods_are_shown_literally():
    """They are names of folders. Rich must not interpret [red], and the terminal must not get an escape sequence."""
    out = io.StringIO()
    scores = {name: MethodScores({"a": {"psnr": 20.0}}, {}) for name in ("[red]a[/red]", "b\x1b[2J")}
    print_scores(Evaluation(scores, PROTOCOLS["xpsr"], ("psnr",), None, {"[c]": {"psnr": 3.0}}), Console(file=out))
    assert all(name in out.getvalue() for name in ("[red]a[/red]", "b\\x1b[2J", "[c] (elsewhere)"))
    assert "\x1b" not in out.getvalue()


def test_invalid_arguments_are_refused_before_reading(folders, tmp_path, capsys):
    with pytest.raises(UserError, match="no such folder"):
        match_images({"x": tmp_path / "none"}, folders / "good")
    arguments = ["--reference", str(folders / "good")]
    assert evaluate.main([*arguments, "--restored", str(folders / "bad"), str(folders / "bad")]) == 1
    assert evaluate.main([*arguments, "--restored", str(folders / "bad"), "--batch-size", "0"]) == 1
    said = capsys.readouterr().err
    assert "named twice" in said
    assert "--batch-size must be at least 1, not 0" in said


def test_transparent_images_are_compared_on_white(folders, tmp_path, capsys):
    """The colours of invisible pixels have no effect. The white background counts."""
    image = read(folders / "good" / "a.png")
    alpha = np.zeros((40, 40, 1), np.uint8)
    alpha[:, 10:] = 255
    other = image.copy()
    other[:, :10] = 77
    for folder, pixels in (("HR", image), ("sr", other)):
        write(tmp_path / folder / "a.png", np.dstack([pixels[..., ::-1], alpha]))
    white = image.copy()
    white[:, :10] = 255
    write(tmp_path / "white" / "a.png", white[..., ::-1])
    for restored in ("sr", "white"):
        words = ["--restored", str(tmp_path / restored), "--reference", str(tmp_path / "HR"), "--metrics", "psnr"]
        assert evaluate.main([*words, "--json", str(tmp_path / "s.json")]) == 0
        assert json.loads((tmp_path / "s.json").read_text())["mean"]["psnr"] == pytest.approx(80, abs=1e-4)
        assert "1 of 1 images are partly transparent; they were compared on a white" in capsys.readouterr().out


def test_unreadable_images_are_skipped_on_request(folders, tmp_path, capsys):
    """One image has a broken header, one has broken pixels."""
    for folder in ("HR", "sr"):
        for name in ("1", "2", "3"):
            write(tmp_path / folder / f"{name}.png", read(folders / "good" / "a.png"))
    (tmp_path / "sr" / "1.png").write_bytes(b"?")
    damaged = bytearray((tmp_path / "HR" / "3.png").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "HR" / "3.png").write_bytes(damaged)
    words = ["--restored", str(tmp_path / "sr"), "--reference", str(tmp_path / "HR"), "--metrics", "psnr"]
    assert evaluate.main(words) == 1
    assert "nothing was measured: 1 images cannot be matched" in capsys.readouterr().err
    assert evaluate.main([*words, "--on-error", "skip", "--output", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert "1.png: not an image" in said.err and "3.png: damaged" in said.err
    assert "1 of 3 images measured; 2 skipped" in said.out
    assert list(json.loads((tmp_path / "report" / "scores.json").read_text())["images"]) == ["2.png"]
    (tmp_path / "sr" / "2.png").write_bytes(b"?")
    assert evaluate.main([*words, "--on-error", "skip"]) == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_the_papers_scores_stand_beside_those_of_a_set_that_is_named(folders, tmp_path, capsys):
    arguments = ["--restored", str(folders / "good"), "--reference", str(folders / "RealSRVal_crop128")]
    arguments += ["--metrics", "psnr", "lpips", "--json", str(tmp_path / "s.json")]
    arguments += ["--output", str(tmp_path / "report")]
    assert evaluate.main(arguments) == 0
    assert "RealSR: by the folder's name; --set RealSR also shows" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "s.json").read_text())) == {"mean", "images"}

    assert evaluate.main([*arguments, "--set", "drealsr"]) == 0
    said = capsys.readouterr().out
    rows = [re.findall(r"[\w.–()-]+", line) for line in said.splitlines()]
    assert ["Real-ESRGAN", "(paper)", "28.61", "0.2819"] in rows
    assert ["XPSR", "(paper)", "–", "0.3864"] in rows  # that number is not legible
    assert re.search(
        r"^paper: Table 1 of the paper for DRealSR, not measured here\..*versions of the metrics.*$", said, re.M
    )
    assert "by the folder's name" not in said
    for file in (tmp_path / "s.json", tmp_path / "report" / "scores.json"):
        beside = json.loads(file.read_text())["paper"]
        assert beside["set"] == "DRealSR" and beside["note"].startswith("paper: Table 1")
        assert beside["scores"]["XPSR"] == {"psnr": None, "lpips": 0.3864}
        assert len(beside["scores"]) == 8
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| XPSR | – | 0.3864 |" in markdown and "paper: Table 1 of the paper for DRealSR" in markdown
    page = (tmp_path / "report" / "report.html").read_text()
    assert "XPSR, paper" in page and "paper: Table 1" in page


def test_the_papers_columns_are_those_that_were_measured():
    def evaluation(*metrics):
        scores = {"ours": MethodScores({"a": dict.fromkeys(metrics, 0.5)}, {})}
        return Evaluation(scores, PROTOCOLS["seesr"], metrics, "RealSR", paper=paper.scores_of_set("RealSR"))

    rows = rows_beside(evaluation("ssim", "niqe", "maniqa_pipal"))["paper"]
    assert rows["SeeSR"] == {"ssim": 0.7284} and rows["PASD"] == {"ssim": None}
    # The paper does not say on what its MANIQA was trained; the released script's is KonIQ-10k.
    none = evaluation("niqe", "maniqa_pipal")
    assert rows_beside(none) == {}
    assert notes(none) == {"paper": "paper: its Table 1 for RealSR has none of these metrics."}


def test_a_set_that_the_paper_does_not_have_is_refused(folders, capsys):
    arguments = ["--restored", str(folders / "good"), "--reference", str(folders / "RealSRVal_crop128")]
    assert evaluate.main([*arguments, "--set", "Set5"]) == 1
    error = 'error: the paper has no set "Set5": --set takes DIV2K-Val, RealSR, DRealSR, or none for no set\n'
    assert capsys.readouterr().err == error
    assert paper.find_set("div2k-VAL") == "DIV2K-Val"
    assert {*SETS.values()} == {*paper.set_names()}  # what is told by a folder's name


def test_the_papers_tables_are_whole():
    for name in paper.set_names():
        rows = paper.scores_of_set(name)
        assert len(rows) == 8 and {tuple(row) for row in rows.values()} == {tuple(rows["XPSR"])}
        assert {*rows["XPSR"]} < {*METRIC_NAMES}
    for table, itself in paper.ITSELF.items():
        for set_name, row in paper.ablation(table)[itself].items():
            of_table_1 = paper.scores_of_set(set_name)["XPSR"]
            assert row.items() <= of_table_1.items()


@pytest.fixture
def realsr(tmp_path):
    """Names and sizes as RealSR has them: originals of odd sizes, results of multiples of 4 under the inputs' names."""
    rng = np.random.default_rng(0)
    for name, size in {"Canon_001": (41, 43), "Nikon_002": (40, 42)}.items():
        original = rng.integers(0, 256, (*size, 3), np.uint8)
        write(tmp_path / "HR" / f"{name}_HR.png", original)
        write(tmp_path / "LR" / f"{name}_LR4.png", original[:40:4, :40:4])
        write(tmp_path / "out" / f"{name}_LR4.png", original[:40, :40])
    return tmp_path


def test_names_and_sizes_of_realsr(realsr, capsys):
    words = ["--restored", str(realsr / "out"), "--reference", str(realsr), "--metrics", "psnr"]
    assert evaluate.main(words) == 1
    said = capsys.readouterr().err
    assert "see also --match and --crop-to-multiple" in said
    words += ["--match", "_LR4=_HR"]
    assert evaluate.main(words) == 1
    said = capsys.readouterr().err
    assert "2 images cannot be matched" in said
    assert "Canon_001_LR4.png has 40 x 40 pixels, but its original has 43 x 41" in said

    # Equal, but for what is cropped.
    words += ["--crop-to-multiple", "4", "--output", str(realsr / "report")]
    assert evaluate.main(words) == 0
    assert "2 images, protocol xpsr, cropped to a multiple of 4" in " ".join(capsys.readouterr().out.split())
    scores = json.loads((realsr / "report" / "scores.json").read_text())
    assert [row["psnr"] for row in scores["images"].values()] == pytest.approx([80, 80], abs=1e-4)
    assert list(scores["images"]) == ["Canon_001_HR.png", "Nikon_002_HR.png"]
    manifest = json.loads((realsr / "report" / "manifest.json").read_text())
    assert manifest["match"] == "_LR4=_HR" and manifest["crop_to_multiple"] == 4
    assert "at the right and at the bottom, to a multiple of 4 pixels" in manifest["protocol"]
    page = (realsr / "report" / "report.html").read_text()
    assert page.count("<img ") == 2 * 3  # inputs are matched too


def test_sizes_are_compared_as_they_are_cropped(realsr, capsys):
    match = ("_LR4", "_HR")
    originals, results = realsr / "HR", {"x": realsr / "out"}
    found = match_images(results, originals, match=match, crop_to_multiple=8)
    assert [each.size for each in found] == [(40, 40), (40, 40)]
    with pytest.raises(UserError) as caught:
        match_images(results, originals, match=match, crop_to_multiple=42, least_side=11)
    said = str(caught.value)
    assert "Canon_001_HR.png has 42 x 0 pixels when cropped to a multiple of 42, the metrics need 11" in said
    assert "Canon_001_LR4.png has 0 x 0 pixels, but its original has 42 x 0 when cropped to a multiple of 42" in said
    assert evaluate.main(["--restored", "a", "--reference", "b", "--crop-to-multiple", "0"]) == 1
    assert "--crop-to-multiple must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["_LR4", "=_HR", "_LR4=_HR=", "LR/a=HR/a", ""])
def test_what_is_no_replacement_is_refused(text, capsys):
    assert evaluate.main(["--restored", "a", "--reference", "b", "--match", text]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --match must be OLD=NEW") and said.count("\n") == 1 and f'not "{text}"' in said


def test_names_are_replaced_within_the_name_alone(folders, tmp_path):
    image = read(folders / "good" / "a.png")
    write(tmp_path / "HR" / "x_out" / "a.png", image)
    write(tmp_path / "sr" / "x_out" / "a_out.png", image)
    [found] = match_images({"sr": tmp_path / "sr"}, tmp_path / "HR", match=("_out", ""))
    assert found.restored == (tmp_path / "sr" / "x_out" / "a_out.png",)
    with pytest.raises(UserError, match=r'--match: no image in \S+sr has "_LR4" in its name'):
        match_images({"sr": tmp_path / "sr"}, tmp_path / "HR", match=("_LR4", "_HR"))
    write(tmp_path / "sr" / "x_out" / "a.png", image)
    with pytest.raises(UserError, match=r"same name twice: \S+a\S*.png and \S+a\S*.png"):
        match_images({"sr": tmp_path / "sr"}, tmp_path / "HR", match=("_out", ""))


def test_names_match_in_any_unicode_normalisation(folders, tmp_path):
    for folder, name in (("HR", "caf\u00e9"), ("sr", "cafe\u0301")):
        write(tmp_path / folder / f"{name}.png", read(folders / "good" / "a.png"))
    [found] = match_images({"sr": tmp_path / "sr"}, tmp_path / "HR")
    assert found.restored == (tmp_path / "sr" / "cafe\u0301.png",)
