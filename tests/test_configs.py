"""Every shipped YAML of recipes/ is parsed, and says in its header what it needs."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from align import paths
from align.config import STAGES
from align.parsing import build, field_docs, load_recipe, to_yaml
from align.strict_yaml import read_yaml

STAGE_FILES = sorted(paths.CONFIGS.rglob("*.yaml"))
RECIPES = sorted(p for p in paths.CONFIGS.iterdir() if p.is_dir())


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_stage_file_parses_and_survives_a_round_trip(path: Path) -> None:
    config = build(STAGES[path.stem], read_yaml(path), str(path))
    assert build(STAGES[path.stem], yaml.safe_load(to_yaml(config)), "again") == config


def header(path: Path) -> str:
    """The comment that a YAML file begins with, in one line."""
    lines = path.read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ").rstrip("\\ ") for line in lines[:first])


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_stage_file_says_what_it_needs_and_whether_it_was_run(path: Path) -> None:
    said, recipe = header(path), path.parent.name
    assert "Hardware:" in said and "Prerequisites:" in said
    file = f"accelerate launch recipes/{path.stem}.py"
    if path.stem == "eval":
        assert f"Launch: align run {recipe} --from eval --to eval" in said
    elif recipe == "quickstart":
        assert f"Launch: {file}" in said
    else:
        assert f"{file} --config recipes/configs/{recipe}/{path.name}" in said
    assert ("Not run here" in said) != ("easured" in said)


@pytest.mark.parametrize("folder", RECIPES, ids=lambda p: p.name)
def test_a_recipe_is_complete(folder: Path) -> None:
    assert set(load_recipe(folder.name, {})) == set(STAGES)


@pytest.mark.parametrize("folder", RECIPES, ids=lambda p: p.name)
def test_a_later_stage_takes_the_template_of_sft(folder: Path) -> None:
    configs = load_recipe(folder.name, {})
    for stage in ("reward", "ppo"):  # null: the one that is saved with the SFT checkpoint
        assert configs[stage].chat_template in (None, configs["sft"].chat_template)


@pytest.mark.parametrize("path", sorted((paths.RECIPES / "accelerate").glob("*.yaml")), ids=str)
def test_accelerate_configs_parse_and_say_how_they_are_launched(path: Path) -> None:
    assert f"accelerate launch --config_file recipes/accelerate/{path.name}" in header(path)
    assert "Hardware:" in header(path)
    assert ("Not run here" in header(path)) != ("Tested" in header(path))
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 1


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda c: c.stage)
def test_every_field_says_its_meaning_right_under_itself(stage: type) -> None:
    undocumented = {f.name for f in fields(stage)} - set(field_docs(stage))
    assert not undocumented


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda c: c.stage)
def test_every_field_is_read_somewhere(stage: type) -> None:
    sources = [*paths.PACKAGE.rglob("*.py"), *paths.RECIPES.glob("*.py")]
    code = "\n".join(p.read_text("utf-8") for p in sources if p.name != "config.py")
    unread = [f.name for f in fields(stage) if f".{f.name}" not in code]
    assert not unread, f"parsed and never read: {unread}"
