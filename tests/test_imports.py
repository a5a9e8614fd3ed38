"""Imports point one way, as docs/understand/architecture.md draws. Imports within functions count like any others."""

import re
from pathlib import Path

import grimp
import pytest

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"

# From the top down. Modules of one line do not import each other.
FLOORS = (
    {"cli"},
    {"app"},
    {"pods"},
    {"training"},
    {"caption", "evaluation", "preparation"},
    {"inference"},
    {"weights"},
    {"sharding", "distributed"},
    {"config"},
    {"data"},
    {"models", "diffusion", "images"},
    {"serialisation", "json_files", "locks"},
    {"files"},
    {"buckets"},
    {"errors", "machine", "assets", "version"},
)
# What `python -m` names. They call a command and have no floor.
DOORS = {"__main__", "demo", "evaluate", "preflight", "prepare_data", "app.__main__", "caption.__main__"}


def imports(*more: tuple[str, str]) -> grimp.ImportGraph:
    """Who imports whom, without the doors; `more`: as if there were these imports too."""
    graph = grimp.build_graph("xpsr_jax", cache_dir=None)
    for door in DOORS:
        graph.remove_module(f"xpsr_jax.{door}")
    for importer, imported in more:
        assert {importer, imported} <= graph.modules
        graph.add_import(importer=importer, imported=imported)
    return graph


def upward(graph: grimp.ImportGraph) -> set[str]:
    """Each chain of imports that goes up, or to a neighbour, as "a -> b -> c"."""
    found = graph.find_illegal_dependencies_for_layers(layers=FLOORS, containers={"xpsr_jax"})
    routes = [route for each in found for route in each.routes]
    return {
        " -> ".join((head, *route.middle, tail)) for route in routes for head in route.heads for tail in route.tails
    }


def test_every_part_has_its_floor():
    parts = {name.removeprefix("xpsr_jax.") for name in imports().find_children("xpsr_jax")}
    assert parts == set().union(*FLOORS) and len(parts) == sum(map(len, FLOORS))


def test_the_picture_shows_these_floors():
    """A row's rooms stand at one height, and higher rows have smaller ones."""
    rooms = re.findall(r'y="(\d+)"[^>]*monospace[^>]*>(\w+)<', PICTURE.read_text())
    heights = sorted({int(y) for y, _ in rooms})
    assert [{name for y, name in rooms if int(y) == height} for height in heights] == list(FLOORS)


def test_imports_point_down():
    assert upward(imports()) == set()


def test_doors_only_call_a_command():
    graph = grimp.build_graph("xpsr_jax", cache_dir=None)
    for door in DOORS:
        (command,) = graph.find_modules_directly_imported_by(f"xpsr_jax.{door}")
        assert command.startswith("xpsr_jax.cli.") and not graph.find_modules_that_directly_import(f"xpsr_jax.{door}")


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("xpsr_jax.weights.rules", "xpsr_jax.training.loop"),
        ("xpsr_jax.models.layers", "xpsr_jax.diffusion.schedule"),
        ("xpsr_jax.errors", "xpsr_jax.files"),
        ("xpsr_jax.app.one", "xpsr_jax.cli.run"),
    ],
)
def test_an_import_upward_is_found(importer: str, imported: str):
    assert f"{importer} -> {imported}" in upward(imports((importer, imported)))


def test_an_import_upward_by_way_of_the_package_is_found():
    """`import xpsr_jax` brings what its __init__ imports."""
    chains = upward(imports(("xpsr_jax.errors", "xpsr_jax")))
    assert "xpsr_jax.errors -> xpsr_jax -> xpsr_jax.training.loop" in chains
