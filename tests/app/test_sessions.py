"""The visitors' sessions and their limits."""

import os
import time
from pathlib import Path

import pytest

from xpsr_jax.app import sessions
from xpsr_jax.app.sessions import REFUSED, Full, Limits, Refused, Sessions

HASH = "0123456789abcdef" * 4


def upload(folder: Path, name: str = "photo.png", size: int = 10, hash: str = HASH) -> str:
    file = folder / hash / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bytes(size))
    return str(file)


def test_an_upload_is_copied_to_its_session(tmp_path):
    visitors = Sessions(tmp_path, Limits())
    session = visitors.of("a")
    path = upload(tmp_path)
    copy = visitors.take(session, path)
    assert copy.name == "photo.png" and copy.is_relative_to(session.folder) and copy.read_bytes() == bytes(10)
    # Two visitors may upload the same photograph. If one removes it, the other still has it.
    other = visitors.take(visitors.of("b"), path)
    session.remove(copy)
    assert not copy.exists() and other.exists()


def test_nothing_else_is_taken(tmp_path):
    """Other files (also by links and dots), folders, pipes, the sessions' own files, and values that are not paths."""
    folder = tmp_path / "page"
    folder.mkdir()
    visitors = Sessions(folder, Limits())
    session = visitors.of("a")
    own = visitors.take(session, upload(folder))
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (folder / HASH / "link.png").symlink_to(secret)
    (folder / ("f" * 64)).symlink_to(tmp_path)
    os.mkfifo(folder / HASH / "pipe.png")
    (folder / HASH / "loop.png").symlink_to(folder / HASH / "loop.png")
    (folder / "tmpabc").write_bytes(b"half an upload")
    paths = [
        str(secret),
        f"{folder}/{HASH}/../../secret.png",
        f"{folder}/{HASH}/link.png",
        f"{folder}/{'f' * 64}/secret.png",
        f"{folder}/{HASH}/pipe.png",
        f"{folder}/{HASH}/loop.png",
        f"{folder}/{HASH}",
        f"{folder}/{HASH}/photo.png\0",
        f"{folder}/tmpabc",
        str(own),
        str(folder),
        "/dev/zero",
        "photo.png",
        "a" * 100_000,
        "",
        "http://127.0.0.1/photo.png",
        "\ud800",
        None,
        5,
        ["a"],
        {"path": str(secret)},
    ]
    for path in paths:
        with pytest.raises(Refused, match=REFUSED):
            visitors.take(session, path)
    assert [file.name for file in session.folder.rglob("*.png")] == ["photo.png"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 65, "a b", "ä", "a\n", None])
def test_odd_names_of_sessions_are_refused(tmp_path, name):
    with pytest.raises(Refused):
        Sessions(tmp_path, Limits()).of(name)


def test_sessions_have_a_limit_and_the_idlest_goes_first(tmp_path, monkeypatch):
    visitors = Sessions(tmp_path, Limits(sessions=2))
    first, second = visitors.of("a"), visitors.of("b")
    folder = first.new_folder()
    with pytest.raises(Full, match="it has 2 visitors already"):
        visitors.of("c")
    monkeypatch.setattr(sessions, "MIN_IDLE", 0)
    with first.connected(), second.working(), pytest.raises(Full):
        visitors.of("c")
    assert visitors.of("a") is first, "no session was ended without need"
    time.sleep(0.001)
    visitors.of("b")
    visitors.of("c")
    assert "a" not in visitors and "b" in visitors and not folder.exists()


def test_an_old_sessions_files_are_deleted(tmp_path, monkeypatch):
    visitors = Sessions(tmp_path, Limits())
    first = visitors.of("a")
    folder = first.new_folder()
    assert visitors.of("a") is first
    monkeypatch.setattr(sessions, "MAX_AGE", 0)
    time.sleep(0.001)
    visitors.of("b")
    assert not folder.exists() and visitors.of("a") is not first


def test_uploads_have_a_limit(tmp_path, monkeypatch):
    """Uploads that are still arriving count too. Results are not uploads, but count for the disk limit."""
    visitors = Sessions(tmp_path, Limits(all_uploads_bytes=100, disk_bytes=200))
    session = visitors.of("a")
    with visitors.arriving(60):
        with pytest.raises(Full, match="uploads"), visitors.arriving(41):
            pass
        with visitors.arriving(40):
            pass
    upload(tmp_path, size=50)
    session.photo = visitors.take(session, str(tmp_path / HASH / "photo.png"))
    visitors.check_room()
    with pytest.raises(Full, match="uploads"):
        visitors.check_room(1)
    monkeypatch.setattr(sessions, "MAX_UPLOAD_AGE", -1)
    visitors.check_room(50)  # The original of a copied upload is deleted.
    assert session.photo.exists() and not (tmp_path / HASH / "photo.png").exists()
    (session.new_folder() / "result.png").write_bytes(bytes(140))
    visitors.check_room(10)
    with pytest.raises(Full, match="disk space"):
        visitors.check_room(11)
    monkeypatch.setattr(sessions, "MIN_IDLE", -1)
    visitors.check_room(100)
    assert not session.folder.exists(), "the session of a visitor who has left is deleted"
