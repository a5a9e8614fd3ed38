"""A base model from the hub: all processes use the same commit, and a resumed run uses it again."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from xpsr_jax import distributed
from xpsr_jax.buckets.paths import as_path
from xpsr_jax.config import Config, Networks
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json
from xpsr_jax.training import resume
from xpsr_jax.weights import hub

_COMMIT_DIGITS = 40


def with_commits(config: Config) -> Config:
    """The config with every model of the hub pinned to a commit: `owner/name@commit`. All processes must call this.

    A commit in the config is kept. Otherwise a resumed run uses the commit that it started with, and a new run uses
    the current one. The first process decides for all.

    Raises UserError, in all processes, if the hub does not have a model or cannot be reached.
    """
    networks = config.networks
    names = _names(networks)
    if not names:
        return config
    commits = np.zeros((len(names), _COMMIT_DIGITS), np.uint8)

    def look() -> None:
        before = _began_with(config.run_folder)
        for i, path in enumerate(names):
            if (name := hub.hub_name(path)) is not None:
                commit = name.revision if name.is_pinned else before.get(_any_revision(name)) or hub.commit_of(name)
                commits[i] = np.frombuffer(str(commit).encode(), np.uint8)

    distributed.by_first(look)
    found = [row.tobytes().decode() if row.any() else None for row in distributed.from_first(commits)]
    pinned = [_with_revision(path, commit) if commit else path for path, commit in zip(names, found, strict=True)]
    renamed = dict(zip(names, pinned, strict=True))
    networks = dataclasses.replace(
        networks,
        base=tuple(renamed[path] for path in networks.base),
        tokenizer=renamed.get(networks.tokenizer) if networks.tokenizer else None,
        first_stage=str(renamed.get(as_path(networks.first_stage), networks.first_stage)),
    )
    return dataclasses.replace(config, networks=networks)


def _names(networks: Networks) -> list[Path]:
    """All paths of the config that may be names of models on the hub."""
    first_stage = [] if networks.first_stage in ("own", "none") else [as_path(networks.first_stage)]
    return [*networks.base, *([networks.tokenizer] if networks.tokenizer else []), *first_stage]


def _with_revision(path: Path, commit: str) -> Path:
    name = hub.parsed(path)
    assert name is not None
    return Path(str(dataclasses.replace(name, revision=commit)))


def _any_revision(name: hub.HubName) -> hub.HubName:
    return dataclasses.replace(name, revision=None)


def _began_with(run: Path) -> dict[hub.HubName, str | None]:
    """The commits in the run's recorded settings, by the models' names without a revision."""
    found = {}
    with contextlib.suppress(UserError):  # No settings yet, or they are wrong, which is reported later.
        for path in _names(resume.config_of(read_json(run / "config.json")).networks):
            name = hub.parsed(path)
            if name is not None and name.is_pinned:
                found[_any_revision(name)] = name.revision
    return found
