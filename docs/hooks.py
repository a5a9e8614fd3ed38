"""What mkdocs does beside building the site (mkdocs.yml): it puts the help of commands into reference/commands.md."""

import concurrent.futures
import functools
import os
import re
import subprocess
import sys
from typing import Any

# <!-- xpsr restore --help -->
HELP = re.compile(r"^<!-- xpsr ([a-z ]+) --help -->$", re.MULTILINE)
WIDTH = 84


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces each mark by what that command says of itself."""
    commands = HELP.findall(markdown)
    if commands:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(help_text, commands))
    return HELP.sub(lambda found: f"```text\n{help_text(found[1])}\n```", markdown)


@functools.cache
def help_text(command: str) -> str:
    """The help of `xpsr COMMAND`, as a terminal of that width shows it."""
    words = [sys.executable, "-m", "xpsr_jax", *command.split(), "--help"]
    plain = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(words, env=os.environ | plain, capture_output=True, text=True, check=True).stdout.strip()
