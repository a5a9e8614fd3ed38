"""Everything that the documents name exists: files, modules, functions, variants of configs, documents, headings."""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import xpsr_jax
from xpsr_jax.cli.commands import COMMANDS
from xpsr_jax.config import Config, load_config
from xpsr_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SITE_FROM_CODE = ("commands.md", "settings.md", "api.md")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
# Folders that names of files may be relative to.
FOLDERS = (ROOT, ROOT / "xpsr_jax", ROOT / "configs")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# `models/attention.py`, `configs/tiny.py:end_to_end`, `inference/restore.py:Restorer.plan`
FILE = re.compile(r"`([\w/.-]+\.py)(?::([\w.]+))?`")
# `xpsr_jax.data.captions`, `xpsr_jax.load(folder)`
NAME = re.compile(r"`(xpsr_jax(?:\.\w+)+)")
XPSR = re.compile(r"(?:^|[ /`])xpsr ([a-z_]+)", re.MULTILINE)
CONFIG = re.compile(r"--config ([a-z][\w:]*)(?![\w./])")
MODULE = re.compile(r"python -m ((?:xpsr_jax|benchmarks)(?:\.[a-z_\d]+)+)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_everything_that_it_names_exists(document: Path):
    assert list(missing(document)) == []


def test_the_site_has_every_document_and_the_readme_links_the_site():
    site = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(site) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in PAGES)
    assert "docs/index.md" in {link for link, _ in LINK.findall((ROOT / "README.md").read_text())}


def test_the_reference_pages_are_complete():
    """They have every command, every group of training settings and every public name of the package."""
    commands, settings, api = ((ROOT / "docs/reference" / name).read_text() for name in SITE_FROM_CODE)
    assert set(re.findall(r"^<!-- xpsr (\w+).* --help -->$", commands, re.M)) == set(COMMANDS)
    assert {f"xpsr_jax.{name}" for name in xpsr_jax.__all__} <= set(re.findall(r"xpsr_jax\.\w+", api))
    groups = {name for name, value in vars(Config()).items() if dataclasses.is_dataclass(value)}
    assert groups == set(re.findall(r"^## `(\w+)`", settings, re.M))


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("`weights/rules.py`", False),
        ("`weights/nothing.py`", True),
        ("`data/captions.py:read_captions`", False),
        ("`data/captions.py:read_nothing`", True),
        ("`configs/tiny.py:end_to_end`", False),
        ("`configs/tiny.py:nothing`", True),
        ("`xpsr_jax.data.captions.read_captions(file)`", False),
        ("`xpsr_jax.data.captions.read_nothing`", True),
        ("`xpsr_jax.nothing`", True),
        ("python -m xpsr_jax.caption", False),
        ("python -m xpsr_jax.nothing", True),
        ("`xpsr restore PHOTO`", False),
        ("```\n.venv/bin/xpsr nothing\n```", True),
        ("`xpsr train --config tiny:end_to_end`", False),
        ("`xpsr train --config tiny:nothing`", True),
        ("`xpsr train --config nothing`", True),
        ("`xpsr train --config config.py`", False),
        ("[text](docs/train/data.md#captions)", False),
        ("[text](docs/train/data.md#nothing)", True),
        ("[text](docs/nothing.md)", True),
    ],
)
def test_missing_things_are_found(text: str, lacks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    document = tmp_path / "README.md"
    document.write_text(text)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert bool(list(missing(document))) == lacks


def pages(nav: Any) -> Iterator[str]:
    """The pages that mkdocs.yml lists, at any depth."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from pages(entry)


def missing(document: Path) -> Iterator[str]:
    text = document.read_text()
    for file, name in FILE.findall(text):
        path = next((path for path in (folder / file for folder in FOLDERS) if path.is_file()), None)
        if path is None:
            yield file
        elif name and name != "VARIANT" and name not in names(path) and not is_variant(path, name):
            yield f"{file}:{name}"
    for name in NAME.findall(text):
        if not is_there(name):
            yield name
    for name in MODULE.findall(text):
        path = ROOT.joinpath(*name.split("."))
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            yield f"python -m {name}"
    for code in CODE.findall(text):
        yield from (f"xpsr {name}" for name in XPSR.findall(code) if name not in COMMANDS)
        yield from (f"--config {name}" for name in CONFIG.findall(code) if not is_config(name))
    for link, heading in LINK.findall(CODE.sub("`", text)):
        path = document.parent / link if link else document
        if not path.exists():
            yield link
        elif heading and heading not in headings(path):
            yield f"{link}#{heading}"


@functools.cache
def names(path: Path) -> set[str]:
    """The names that a module defines or imports, and its classes' members as `Class.member`."""
    return set(_names(ast.parse(path.read_text()).body))


def _names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef():
                yield prefix + node.name
            case ast.ClassDef():
                yield prefix + node.name
                yield from _names(node.body, f"{prefix}{node.name}.")
            case ast.Assign(targets=targets):
                yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (prefix + (alias.asname or alias.name) for alias in aliases)
            case ast.If():  # if TYPE_CHECKING
                yield from _names(node.body, prefix)


def is_variant(path: Path, name: str) -> bool:
    """Whether a config file has this variant."""
    try:
        return path.parent.name == "configs" and bool(load_config(f"{path}:{name}"))
    except UserError:
        return False


def is_config(name: str) -> bool:
    """Whether a config has this name."""
    try:
        return bool(load_config(name))
    except UserError:
        return False


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one. Modules are parsed, not imported."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        module = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
        if module is not None:
            return count == len(parts) or ".".join(parts[count:]) in names(module)
    return False


@functools.cache
def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, in GitHub's format."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}
