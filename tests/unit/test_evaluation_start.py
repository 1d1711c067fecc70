"""An evaluation starts without what it doesn't use, and what stands in for it becomes the thing."""

import gc
import subprocess
import sys

from align.evaluation.embedded import Items
from align.evaluation.start import import_on_use, quick_imports

UNUSED = ("pandas", "scipy.stats", "peft", "detoxify", "evaluate", "sklearn", "nltk", "trl")
HEAVY = """
import sys
from align.evaluation import run, suites
file = suites.TaskFile("quickstart_facts", suites.task_files()["quickstart_facts"])
task = suites.build(file, chat=False, num_fewshot=None)
assert len(task.eval_docs) == 200
print([name for name in {unused} if name in sys.modules])
import datasets
print(datasets.Dataset.from_list([dict(a=1)])[0], datasets.__version__ != "")
from datasets.arrow_dataset import Dataset
print(Dataset is datasets.Dataset, sys.modules["datasets"].Dataset is Dataset)
"""


def test_an_evaluation_imports_nothing_that_it_does_not_use() -> None:
    code = HEAVY.format(unused=UNUSED)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["[]", "{'a': 1} True", "True True"]


def test_what_is_there_or_not_there_at_all_is_left_alone() -> None:
    import json

    import_on_use("json")
    import_on_use("no_such_module_anywhere")
    assert sys.modules["json"] is json
    assert "no_such_module_anywhere" not in sys.modules


def test_garbage_collection_rests_during_imports_only() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


def test_items_are_as_much_of_a_dataset_as_tasks_ask_for() -> None:
    items = Items([{"id": "a", "x": 1}, {"id": "b", "y": 2.5}])
    assert list(items.features) == ["id", "x", "y"]
    assert items[1] == {"id": "b", "x": None, "y": 2.5}
    assert items["x"] == [1, None]
    assert list(items.select([1])) == [{"id": "b", "x": None, "y": 2.5}]
    assert len(items) == 2
