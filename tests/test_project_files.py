"""The files beside the code say what the code says: versions, commands, targets."""

import re
from pathlib import Path
from typing import Any

import yaml

from xpsr_jax.version import __version__

ROOT = Path(__file__).parents[1]


def read(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())


def test_the_citation_and_the_changelog_name_the_version():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert {"title", "message", "authors"} <= citation.keys()
    assert "2403.05049" in citation["references"][0]["url"]
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased" and __version__ in versions


def test_pre_commit_has_the_ruff_of_the_constraints():
    [repository] = read(".pre-commit-config.yaml")["repos"]
    [version] = re.findall(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert repository["rev"] == f"v{version}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_continuous_integration_runs_every_target_and_a_tag_publishes():
    steps = read(".github/workflows/ci.yml")["jobs"]["run"]["steps"]
    assert [step["run"] for step in steps if step.get("run", "").startswith(".ci/")] == [".ci/run"]
    targets = re.search(r"for target in (.+); do", (ROOT / ".ci/run").read_text())
    assert targets and set(targets[1].split()) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    publish = read(".github/workflows/publish.yml")
    assert publish[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 takes "on" for true
    assert publish["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert publish["jobs"]["publish"]["needs"] == "build"
    assert 'GITHUB_REF_NAME" = "v$version"' in str(publish["jobs"]["build"]["steps"])


def test_issues_ask_for_what_doctor_says():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    asked = {form.stem: read(str(form)).get("body", []) for form in forms if form.stem != "config"}
    assert set(asked) == {"bug", "feature", "results"}
    for body in asked.values():
        assert any("xpsr doctor" in field["attributes"]["label"] for field in body)
