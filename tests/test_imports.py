"""Imports point in one direction; docs/understand/architecture.md shows the floors. Imports in functions count too."""

import re
from pathlib import Path

import grimp
import pytest

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"

# From the top down. Modules on the same line do not import each other.
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
# Modules for `python -m`. They call a command, and are on no floor.
DOORS = {"__main__", "demo", "evaluate", "preflight", "prepare_data", "app.__main__", "caption.__main__"}


def imports(*more: tuple[str, str]) -> grimp.ImportGraph:
    """The graph of imports, without the doors, and with the additional imports `more`."""
    graph = grimp.build_graph("xpsr_jax", cache_dir=None)
    for door in DOORS:
        graph.remove_module(f"xpsr_jax.{door}")
    for importer, imported in more:
        assert {importer, imported} <= graph.modules
        graph.add_import(importer=importer, imported=imported)
    return graph


def upward(graph: grimp.ImportGraph) -> set[str]:
    """Every chain of imports to a higher floor, or to a neighbour on the same floor, as "a -> b -> c"."""
    found = graph.find_illegal_dependencies_for_layers(layers=FLOORS, containers={"xpsr_jax"})
    routes = [route for each in found for route in each.routes]
    return {
        " -> ".join((head, *route.middle, tail)) for route in routes for head in route.heads for tail in route.tails
    }


def test_every_part_is_on_a_floor():
    parts = {name.removeprefix("xpsr_jax.") for name in imports().find_children("xpsr_jax")}
    assert parts == set().union(*FLOORS) and len(parts) == sum(map(len, FLOORS))


def test_the_picture_shows_these_floors():
    """All rooms of a row have the same y. Higher rows have a smaller y."""
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
def test_an_upward_import_is_found(importer: str, imported: str):
    assert f"{importer} -> {imported}" in upward(imports((importer, imported)))


def test_an_upward_import_through_the_package_is_found():
    """`import xpsr_jax` also imports everything that its __init__ imports."""
    chains = upward(imports(("xpsr_jax.errors", "xpsr_jax")))
    assert "xpsr_jax.errors -> xpsr_jax -> xpsr_jax.training.loop" in chains
