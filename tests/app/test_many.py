"""The second tab."""

import io
import json
import zipfile

from playwright.sync_api import expect

from tests.app.conftest import sample
from tests.app.test_one import button, is_as_wide_as_the_window, said


def test_many_photographs_are_restored_as_by_sample_py(server, open_page, photo, broken, tmp_path):
    """One of three is damaged. The error is shown, and the others are restored."""
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes()[:-12] + photo.read_bytes()[-12:])
    captions = tmp_path / "captions.jsonl"
    lines = [{"image": f"some/folder/{path.name}", "high": path.stem, "low": "Blurry."} for path in (photo, other)]
    captions.write_text("\n".join(map(json.dumps, lines)))

    page = open_page(server.address, width=390)
    page.get_by_role("tab", name="Many").click()
    button(page, "Restore all").click()
    said(page, "0 photographs: drop at least 1, at most 3")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator("input[type=file]").first.set_input_files([photo, broken, other, captions])
    expect(panel.get_by_text("captions.jsonl", exact=True).first).to_be_visible()
    button(page, "Restore all").click()
    expect(button(page, "Download all (zip)")).to_be_enabled()
    assert "broken.png: damaged, or an unsupported kind of image" in panel.get_by_role("grid").first.inner_text()
    assert panel.get_by_text("restored in").count() >= 2
    assert is_as_wide_as_the_window(page)

    with page.expect_download() as began:
        button(page, "Download all (zip)").click()
    archive = zipfile.ZipFile(io.BytesIO(began.value.path().read_bytes()))
    named = {path: f"{path.stem}_restored.png" for path in (photo, other)}
    assert sorted(archive.namelist()) == sorted(named.values())

    ours = tmp_path / "ours.jsonl"
    ours.write_text("\n".join(json.dumps(line | {"image": line["image"].split("/")[-1]}) for line in lines))
    sample(tmp_path / "out", [photo, other], "--captions", ours)
    for path, name in named.items():
        assert archive.read(name) == (tmp_path / "out" / path.name).read_bytes()
