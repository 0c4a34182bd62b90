"""How lm-eval builds tasks here: on rows that are given, and none that bc2 cannot evaluate.

Importing this imports lm-eval, so others import it where they need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import Any

import datasets as hub
from lm_eval import utils
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from bc2.errors import Bc2Error, DataError, UsageError
from bc2.harness.suites import OWN_PREFIX
from bc2.streams import first_line

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Split to rows."""

Datasets = Mapping[tuple[str, str | None], Rows]
"""lm-eval's dataset path and name to rows."""

#: What a dataset path begins with that is on no hub.
_OWN = "bc2/"

#: Seconds that the hub has to answer before it counts as out of reach.
_ANSWER_S = 5.0


class BoundTask(ConfigurableTask):  # type: ignore[misc] # lm-eval has no types
    """A task of a YAML file on rows that are given instead of the hub's."""

    def __init__(self, rows: Rows, config: dict[str, Any]):
        self._rows = rows
        self._shown: dict[tuple[str, int], tuple[Any, Any]] = {}
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Called by lm-eval's constructor, to set `dataset`."""
        config = self.config
        scored = config.test_split or config.validation_split
        others = {config.training_split, config.validation_split, self.fewshot_cfg.split}
        if not self._rows.get(scored):
            raise DataError(
                f"{config.task} has no rows to score",
                where=f"{config.dataset_path} {config.dataset_name or ''}".strip(),
                todo=f"the release needs a split {scored!r}",
            )
        self.dataset = hub.DatasetDict(
            # Too few rows for shots are found when the number of shots is known.
            {
                split: hub.Dataset.from_list(list(self._rows.get(split, ())))
                for split in {scored, *others} - {None}
            }
        )
        del self._rows

    def doc_to_text(self, doc: Any, doc_to_text: Any = None) -> Any:
        """A row's question. What shots say, for which lm-eval gives a template, is kept."""
        if doc_to_text is None:
            return super().doc_to_text(doc)
        return self._kept("text", doc, partial(super().doc_to_text, doc, doc_to_text))

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
        """A row's answer, kept as `doc_to_text` does."""
        if doc_to_target is None:
            return super().doc_to_target(doc)
        return self._kept("target", doc, partial(super().doc_to_target, doc, doc_to_target))

    def _kept(self, part: str, doc: Any, make: Callable[[], Any]) -> Any:
        seen, value = self._shown.get((part, id(doc)), (None, None))
        if seen is not doc:
            value = make()
            self._shown[part, id(doc)] = doc, value  # with the row, so that its id stays its own
        return value


class BoundFactory(TaskFactory):  # type: ignore[misc]
    """Builds tasks on given rows, and only some of a group's.

    Args:
        datasets: None: every task fetches its own from the hub.
        only: names of the tasks to build; None: all.
    """

    def __init__(self, datasets: Datasets | None, only: Sequence[str] | None):
        super().__init__()
        compile_templates_once()
        self._datasets = datasets
        self._only = None if only is None else frozenset(only)

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        with _task_errors(entry.name):
            _refuse_unfit(entry)
            if self._datasets is None:
                _refuse_own_data(entry)
                with offline_if_unreachable():
                    return super()._build_task(entry, overrides)
            config = self._load_full_config(entry, overrides)
            for key in ("tag", "group", "task_list"):
                config.pop(key, None)
            return BoundTask(_rows_of(config, self._datasets), config)

    def _build_tag(self, entry: Entry, overrides: Any, registry: Mapping[str, Entry]) -> list[Task]:
        tags = {name for name in entry.tags if self._wanted(name)}
        return list(
            super()._build_tag(Entry(entry.name, Kind.TAG, None, None, tags), overrides, registry)
        )

    def _build_group_members(
        self, members: list[Any], group: str, overrides: Any, registry: dict[str, Entry]
    ) -> list[Any]:
        if self._only is None:
            return list(super()._build_group_members(members, group, overrides, registry))
        kept = [
            one
            for member in members
            for one in _expanded(member, registry)
            if self._kept(one, registry)
        ]
        built = super()._build_group_members(kept, group, overrides, registry)
        return [one for one in built if isinstance(one, Task) or len(one)]

    def _kept(self, member: Any, registry: dict[str, Entry]) -> bool:
        name = member if isinstance(member, str) else member.get("task")
        entry = registry.get(name)
        return entry is None or entry.kind is Kind.GROUP or self._wanted(name)

    def _wanted(self, name: str) -> bool:
        return self._only is None or name in self._only


def _expanded(member: Any, registry: dict[str, Entry]) -> list[Any]:
    """A tag's tasks; anything else as it is."""
    entry = registry.get(member) if isinstance(member, str) else None
    return sorted(entry.tags) if entry is not None and entry.kind is Kind.TAG else [member]


def _rows_of(config: Mapping[str, Any], datasets: Datasets) -> Rows:
    path, name = config.get("dataset_path"), config.get("dataset_name")
    rows = datasets.get((str(path), name))
    if rows is None:
        raise DataError(
            f"no rows for {config['task']}",
            where=f"{path} {name or ''}".strip(),
            todo="give the whole release",
        )
    return rows


def _raw(entry: Entry) -> dict[str, Any]:
    """A task's settings, without running what they refer to."""
    return dict(load_yaml(entry.yaml_path, resolve_func=False)) if entry.yaml_path else {}


def _refuse_unfit(entry: Entry) -> None:
    """Refuse what needs images or sound, and programs that lm-eval would run in this process.

    Before its functions are imported: that alone runs programs for lm-eval's humaneval.
    """
    config = _raw(entry)
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UsageError(f"{entry.name} asks about images or sound", todo="choose a task of text")
    if config.get("unsafe_code") and not entry.name.startswith(OWN_PREFIX):
        raise UsageError(
            f"{entry.name} runs the model's programs outside of bc2's sandbox",
            todo="use --bench humaneval or mbpp, which run them inside",
        )


def _refuse_own_data(entry: Entry) -> None:
    path = str(_raw(entry).get("dataset_path"))
    if path.startswith(_OWN):
        raise DataError(
            f"{entry.name} is on no hub that lm-eval reads",
            todo="give the release's files with --data",
        )


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Use only what the hub's cache holds where the hub does not answer.

    Otherwise datasets asks it five times with pauses, 23 s in all, before it looks there.
    """
    import huggingface_hub.constants as settings

    if settings.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    before = settings.HF_HUB_OFFLINE, hub.config.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = hub.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE, hub.config.HF_HUB_OFFLINE = before


@cache
def _hub_answers() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_ANSWER_S)
    except Exception:  # of the HTTP library, which is another one in each version of the hub's
        return False
    return True


@contextmanager
def _task_errors(task: str) -> Iterator[None]:
    """Turn any error of lm-eval, of datasets or of a task's own code into a DataError."""
    try:
        yield
    except Bc2Error:
        raise
    except Exception as error:  # no common class
        raise DataError(
            f"cannot build lm-eval's task {task!r}: {first_line(error)}",
            todo="check the network, or give the release's files with --data",
        ) from error


@cache
def compile_templates_once() -> None:
    """Keep compiled templates: lm-eval compiles one again for each row."""
    utils.env.from_string = lru_cache(maxsize=4096)(utils.env.from_string)
