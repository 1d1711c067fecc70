"""The layers of the architecture: who may import whom, and that nothing heavy is imported early."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"errors", "paths", "__init__"},
    {"config", "parsing", "checkpoint", "data", "guards", "limits", "preflight"}
    | {
        "quickstart",
        "room",
        "strict_yaml",
        "callbacks",
        "encoding",
        "scoring",
        "streams",
        "training",
    },  # around tokenizers, models and trainers
    {"sft", "reward", "ppo", "evaluation"},
    {"report", "card", "plan", "chat"},
    {"pipeline", "step_keys", "cli"},
]
LIGHT = ["errors", "paths", "config", "parsing", "checkpoint", "data", "guards", "preflight"]
LIGHT += ["report", "card", "plan", "pipeline", "cli", "quickstart.world"]
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval", "detoxify"}


def room(path: Path) -> str:
    """The first part of a module's path below align/: ``align/ppo/loss.py`` is in room ppo."""
    return path.relative_to(ROOT / "align").parts[0].removesuffix(".py")


def layer(name: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"align/{name} has no layer; add it to LAYERS and say why in the commit"
    return found[0]


def imported_rooms(path: Path) -> set[str]:
    """Rooms of align that a file imports, at its top or inside a function."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write it out"
            modules |= {f"{node.module}.{name.name}" for name in node.names}
    parts = [m.split(".") for m in modules if m.split(".")[0] == "align"]
    return {p[1] for p in parts if len(p) > 1 and _is_room(p[1])}


def _is_room(name: str) -> bool:
    folder = ROOT / "align"
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


SOURCES = sorted((ROOT / "align").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_layers_below_its_own(path: Path) -> None:
    here = room(path)
    for other in imported_rooms(path) - {here}:
        if layer(here) in (1, 3, 4):  # 3: card and plan use report's tables
            assert layer(other) <= layer(here), f"{here} imports {other}, which lies above it"
        else:
            assert layer(other) < layer(here), f"{here} imports {other}, which is not below it"


def test_layer_one_has_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        if layer(room(path)) == 1:
            graph.setdefault(room(path), set()).update(imported_rooms(path) - {room(path)})
    assert list(TopologicalSorter(graph).static_order())


def test_nothing_imports_recipes_evals_or_tests() -> None:
    for path in [*SOURCES, *(ROOT / "recipes").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        outside = {name.split(".")[0] for name in names} & {"recipes", "evals", "tests"}
        assert not outside, f"{path} imports {outside}"


def test_evals_holds_no_python() -> None:
    assert not list((ROOT / "evals").rglob("*.py"))


def test_light_modules_import_nothing_heavy() -> None:
    lines = [f"import align.{name}" for name in LIGHT]
    code = "; ".join([*lines, "import sys", f"print(sorted({HEAVY} & set(sys.modules)))"])
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_a_recipe_is_one_main_of_at_most_120_lines(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    functions = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert functions == ["main"]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Try)]
    assert len(text.splitlines()) <= 120
