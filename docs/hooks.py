"""What mkdocs does beside building the site (mkdocs.yml).

It puts the help of commands into reference/commands.md, and makes links of pages that docstrings and help name.
"""

import concurrent.futures
import functools
import logging
import os
import re
import subprocess
import sys
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

# Its warnings end a strict build.
LOG = logging.getLogger("mkdocs.hooks")
# docs/train/data.md
PAGE = re.compile(r"\bdocs/([\w/-]+\.md)\b")
# <!-- xpsr restore --help -->
HELP = re.compile(r"^<!-- xpsr ([a-z ]+) --help -->$", re.MULTILINE)
WIDTH = 84


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces each mark by what that command says of itself."""
    commands = HELP.findall(markdown)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = dict(zip(commands, pool.map(help_text, commands), strict=True))
    return HELP.sub(lambda found: f"```text\n{texts[found[1]]}\n```", markdown)


def on_env(env: Any, files: Files, **_: Any) -> None:
    """Makes links of the pages that are named by their path, now that all titles are known."""
    for file in files.documentation_pages():
        if file.page and file.page.content:
            file.page.content = PAGE.sub(functools.partial(link, page=file.page, files=files), file.page.content)


def link(found: re.Match[str], *, page: Page, files: Files) -> str:
    """A link from that page to the one whose path was found."""
    file = files.get_file_from_path(found[1])
    if file is None or file.page is None:
        LOG.warning("%s names %s, which is not there", page.file.src_path, found[0])
        return found[0]
    return f'<a href="{get_relative_url(file.url, page.url)}">{file.page.title}</a>'


def help_text(command: str) -> str:
    """The help of `xpsr COMMAND`, as a terminal of that width shows it."""
    words = [sys.executable, "-m", "xpsr_jax", *command.split(), "--help"]
    plain = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(words, env=os.environ | plain, capture_output=True, text=True, check=True).stdout.strip()
