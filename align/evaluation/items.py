"""The items of one task: prompts, requests, and one row of scores an item."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from align.errors import AlignError
from align.evaluation.subject import LanguageModel, Request, Subject
from align.evaluation.suites import first_line

LONGEST_PROMPT = 4000  # characters of a prompt that an item file keeps, from its end


class Item(NamedTuple):
    """One question of a task, with lm-eval's instances; ``problem``: why it can't be asked."""

    doc: dict[str, Any]
    instances: list[Any]
    problem: str | None


def draw(n: int, limit: int | None, seed: int) -> list[int]:
    """Indices of the items to use: all, or ``limit`` of them drawn with the seed."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(Random(f"items-{seed}").sample(range(n), limit))


def draw_sets(sets: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Indices of whole sets of items: as many as fit into the limit, and at least one."""
    if limit is None or limit >= len(sets):
        return list(range(len(sets)))
    names = sorted(set(sets))
    kept: list[int] = []
    for name in Random(f"items-{seed}").sample(names, len(names)):
        members = [i for i, other in enumerate(sets) if other == name]
        if kept and len(kept) + len(members) > limit:
            break
        kept += members
    return sorted(kept)


def prepare(task: Any, subject: Subject, limit: int | None, seed: int, chat: bool) -> list[Item]:
    """The items of a task as requests. All items see the same few-shot examples."""
    docs = task.eval_docs
    column = (task.config.metadata or {}).get("whole")
    drawn = (
        draw_sets([str(name) for name in docs[column]], limit, seed)
        if column
        else draw(len(docs), limit, seed)
    )
    return [_prepare_one(task, dict(docs[i]), i, subject, seed, chat) for i in drawn]


def _prepare_one(
    task: Any, doc: dict[str, Any], number: int, subject: Subject, seed: int, chat: bool
) -> Item:
    try:
        made = _instances(task, doc, number, subject, seed, chat)
        problem = _too_long(made, subject)
        return Item(doc, [], problem) if problem else Item(doc, made, None)
    except AlignError:
        raise
    except Exception as error:  # a broken item must not end the evaluation
        return Item(doc, [], f"no prompt: {type(error).__name__}: {first_line(error)}")


def _too_long(instances: Sequence[Any], subject: Subject) -> str | None:
    """Why an item can't be scored: a choice that is longer than all that the model can read."""
    if not isinstance(subject, LanguageModel):
        return None
    for instance in instances:
        if instance.request_type == "loglikelihood":
            context, continuation = instance.args[:2]
            if len(continuation.encode()) > subject.lm.max_length:  # a token is a byte at least
                tokens = len(subject.lm._encode_pair(context, continuation)[1])
                if tokens > subject.lm.max_length:
                    most = subject.lm.max_length
                    return f"a choice has {tokens} tokens, more than the model's context of {most}"
    return None


def _instances(
    task: Any, doc: dict[str, Any], number: int, subject: Subject, seed: int, chat: bool
) -> list[Any]:
    """lm-eval's instances of one item."""
    metadata = (task.task_name, number, task.config.repeats)
    if not isinstance(subject, LanguageModel):
        made = task.construct_requests(doc=doc, ctx=task.doc_to_text(doc), metadata=metadata)
        for instance in made:  # a reward model reads the bare completion
            instance.arguments = (instance.args[0], instance.args[1].lstrip())
        return list(made)
    task.set_fewshot_seed(seed)
    template = subject.lm.apply_chat_template if chat else None
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=template,
        gen_prefix=task.doc_to_prefix(doc),
    )
    made = task.construct_requests(
        doc=doc, ctx=context, metadata=metadata, apply_chat_template=chat, chat_template=template
    )
    return made if isinstance(made, list) else [made]


def respond(items: Sequence[Item], subject: Subject) -> None:
    """Put the model's answers into the instances."""
    asked: list[tuple[Any, Request]] = []
    for instance in (i for item in items for i in item.instances):
        if instance.request_type == "loglikelihood_rolling":
            assert isinstance(subject, LanguageModel)
            instance.resps = [subject.rolling(instance.args[0])]
        elif instance.request_type == "generate_until":
            context, settings = instance.args[:2]
            many = range(instance.repeats or 1)
            asked += [(instance, Request(context, "", settings, index)) for index in many]
        else:
            asked.append((instance, Request(*instance.args[:2])))
    answers = subject.answer([request for _, request in asked])
    for (instance, request), answer in zip(asked, answers, strict=True):
        scored = request.settings is None
        instance.resps.append((answer[0], bool(answer[1])) if scored else answer)


def rows(task: Any, items: Sequence[Item]) -> list[dict[str, Any]]:
    """One row an item: what was asked, what came back, the scores, or why there are none."""
    instances = [instance for item in items for instance in item.instances]
    task._instances = instances
    if instances:
        task.apply_filters()
    found = [_row(task, item) for item in items]
    _number_twins(found)
    return found


def _row(task: Any, item: Item) -> dict[str, Any]:
    metadata = task.config.metadata or {}
    doc = item.doc
    name = _label(doc, metadata.get("id", "id")) or content_id(doc)
    row: dict[str, Any] = {
        "task": task.task_name,
        "id": name,
        "cluster": _label(doc, metadata.get("cluster", "cluster")) or name,
        "prompt": _prompt(item),
        **_outputs(item),
        "gold": None,
        "scores": {},
        "unscored_reason": item.problem,
        "meta": {key: doc.get(key) for key in metadata.get("meta", ())},
    }
    if item.problem is None:
        try:
            row["gold"] = task.doc_to_target(doc)
            row["unscored_reason"] = _no_gold(task, doc, row["gold"])
            row["scores"] = {} if row["unscored_reason"] else _scores(task, item)
        except AlignError:
            raise
        except Exception as error:  # unscored, counted, and never 0
            row["unscored_reason"] = f"{type(error).__name__}: {first_line(error)}"
    main = metadata.get("main")
    if row["unscored_reason"] is None and not _is_scored(row["scores"], main):
        row["unscored_reason"] = f"no {main or 'score'}"
    return row


def _label(doc: dict[str, Any], column: str) -> str:
    """What an item is called in a column, 0 included; empty where it has nothing there."""
    value = doc.get(column)
    return "" if value is None else str(value)


def _no_gold(task: Any, doc: dict[str, Any], gold: Any) -> str | None:
    """Why an item has no right answer; lm-eval's own metrics would call every answer wrong."""
    if task.config.process_results is not None:
        return None  # scorers of their own say themselves what they need
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else gold  # as lm-eval has it
        golds = gold if isinstance(gold, list) else [gold]
        known = [
            g for g in golds if g in choices or (isinstance(g, int) and g in range(len(choices)))
        ]
        return None if known else f"no gold: {gold!r} is none of the {len(choices)} choices"
    wanted = task.OUTPUT_TYPE == "generate_until"
    return f"no gold: {gold!r}" if wanted and gold in (None, "", "None", []) else None


def _is_scored(scores: dict[str, Any], main: str | None) -> bool:
    """True if the main metric, where it applies, has a value; without one: any metric."""
    if main in scores:
        return scores[main] is not None
    return any(value is not None for value in scores.values())


def _scores(task: Any, item: Item) -> dict[str, Any]:
    """Metric -> value of one item; with several filters their names follow the metric's."""
    filters = list(item.instances[0].filtered_resps)
    scores: dict[str, Any] = {}
    for name in filters:
        results = [instance.filtered_resps[name] for instance in item.instances]
        suffix = f"_{name}" if len(filters) > 1 else ""
        for metric, value in task.process_results(item.doc, results).items():
            scores[metric + suffix] = _plain(value)
    return scores


def _plain(value: Any) -> Any:
    """A finite float, None for unscored, anything else (tuples for corpus metrics) as it is."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else None


def _outputs(item: Item) -> dict[str, Any]:
    if not item.instances:
        return {}
    kind = item.instances[0].request_type
    if kind == "generate_until":
        texts = item.instances[0].resps
        return {"completion": texts[0] if len(texts) == 1 else list(texts)}
    if kind == "loglikelihood_rolling":
        return {"loglikelihoods": [i.resps[0] for i in item.instances]}
    return {"loglikelihoods": [i.resps[0][0] for i in item.instances]}


def _prompt(item: Item) -> str:
    text = str(item.instances[0].args[0]) if item.instances else ""
    return text if len(text) <= LONGEST_PROMPT else "…" + text[-LONGEST_PROMPT:]


def _number_twins(found: list[dict[str, Any]]) -> None:
    """Make ids unique: items that occur twice are numbered."""
    seen: dict[str, int] = {}
    for row in found:
        seen[row["id"]] = seen.get(row["id"], 0) + 1
        if seen[row["id"]] > 1:
            row["id"] += f"#{seen[row['id']]}"


def content_id(doc: dict[str, Any]) -> str:
    """16 hex digits that name an item without an id."""
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_sha256(docs: Any) -> str:
    """Hash of all items of a task."""
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()


def item_file(output: Path, task: str) -> Path:
    """Where the rows of a task are written."""
    return output / "items" / f"{task}.jsonl"
