"""Where the files beside the package are: in a checkout, or bundled inside an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _room(name: str) -> Path:
    bundled = PACKAGE / "_bundled" / name
    return bundled if bundled.is_dir() else PACKAGE.parent / name


EVALS = _room("evals")
RECIPES = _room("recipes")
DATA_CARDS = _room("data_cards")
CONFIGS = RECIPES / "configs"
CHAT_TEMPLATES = RECIPES / "chat_templates"
QUICKSTART_BASE = PACKAGE / "quickstart" / "base"
QUICKSTART_TOXICITY = PACKAGE / "quickstart" / "toxicity"


def data_card(name: str) -> Path:
    """Where the card of a name is: shipped, else in the folder data_cards/ where people stand."""
    shipped = DATA_CARDS / f"{name}.md"
    return shipped if shipped.is_file() else Path.cwd() / "data_cards" / f"{name}.md"


def shown(path: Path) -> Path:
    """A path as people type it: from the folder in which they stand, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
