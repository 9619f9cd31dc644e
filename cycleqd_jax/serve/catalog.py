"""The models that a server offers, their names, and their weights."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cycleqd_jax import report
from cycleqd_jax.engine import Engine, Model
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.runs.folder.models import ModelChoice, RunModels, find_ingredients
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError, Params

__all__ = ["Catalog", "Entry", "OneModel", "RunCatalog", "UnknownModel"]

STEPS = 4
"""Decode steps between two host syncs: few, so that streams are smooth and cancelled requests leave soon."""


class UnknownModel(ValueError):
    """There is no model of this name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that the server offers.

    Attributes:
        id: its name in requests.
        kind: ``model``, ``final``, ``base``, ``expert``, ``elite`` or ``child``.
        about: more facts, ready for JSON.
    """

    id: str
    kind: str
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Catalog(Protocol):
    """The models that a server offers.

    Attributes:
        name: the name of the model or the run.
        run: the run folder, or None.
        tokenizer: the tokenizer of all models.
        config: the architecture of all models.
    """

    name: str
    run: Path | None
    tokenizer: ChatTokenizer
    config: LlamaConfig

    def entries(self) -> Sequence[Entry]:
        """All models that are listed now. Any thread may call it."""
        ...

    def resolve(self, name: str) -> Hashable:
        """The key of a model's weights: equal for names of the same weights. Any thread may call it.

        Raises:
            UnknownModel: there is no such model, or not yet.
        """
        ...

    def express(self, key: Hashable) -> tuple[Params, bool]:
        """The weights of a key, where the engine expects them, and whether they are arrays of their own, which may be donated.

        Only one thread at a time calls it.
        """
        ...

    def engine(self, slots: int, max_len: int) -> Engine:
        """An engine for the models."""
        ...


def _engine(config: LlamaConfig, tokenizer: ChatTokenizer, slots: int, max_len: int, **options: Any) -> Engine:
    """An engine whose programs :meth:`~cycleqd_jax.engine.Engine.warm_up` compiles completely: no prefix is shared."""
    return Engine(
        config,
        slots=slots,
        max_len=max_len,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_below(config.vocab_size),
        steps=STEPS,
        share_prefixes=False,
        keep_conversations=False,
        **options,
    )


class OneModel:
    """The :class:`Catalog` of a single model, whose weights the first call of :meth:`express` hands over.

    Args:
        name: the name of the model in requests.
        model: the model.
    """

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self.run: Path | None = None
        self.tokenizer = model.tokenizer
        self.config = model.config
        self._params: Params | None = model.params

    def entries(self) -> Sequence[Entry]:
        """The model."""
        return [Entry(self.name, "model")]

    def resolve(self, name: str) -> Hashable:
        """The key of the model; see :meth:`Catalog.resolve`."""
        if name != self.name:
            raise UnknownModel(f"expected the model {self.name!r}, got {name!r}; GET /v1/models lists the names")
        return self.name

    def express(self, key: Hashable) -> tuple[Params, bool]:
        """The weights, which belong to the caller from now on."""
        params, self._params = self._params, None
        assert params is not None
        return params, True

    def engine(self, slots: int, max_len: int) -> Engine:
        """An engine for the model."""
        return _engine(self.config, self.tokenizer, slots, max_len)


_Key = tuple[str, Any, Any]
"""``("base", None, None)``, ``("expert", task, None)``, or ``("merge", ids, weights)``."""


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a run folder held when it was read."""

    stamp: tuple[tuple[int, int] | None, ...]
    journal: Journal
    folder: report.RunFolder
    entries: tuple[Entry, ...]
    keys: dict[str, _Key]  # of names that were resolved


class RunCatalog:
    """The :class:`Catalog` of a run folder, which may still grow.

    Names are ``final`` (the model of ``export.method``), ``base``, ``expert:TASK``, ``elite:TASK/CELL`` and ``child:ID``. The
    elites of all cells are listed by cell and by id; any other individual of the journal is also served by its id. The elite of
    a cell is the one at the time of the request.

    Args:
        models: the models of the run, open as long as the catalog is used.

    Raises:
        InputError: the run has no language models, or its experts can't be read.
    """

    def __init__(self, models: RunModels) -> None:
        config = models.config
        if config.segments:
            raise InputError(
                f"expected a run with language models, got one of Segment Anything in {config.folder}; use cycleqd segment"
            )
        loaded = models.models
        architecture = loaded.config
        assert isinstance(architecture, LlamaConfig)
        self.name = config.folder.resolve().name
        self.run: Path | None = config.folder
        self.tokenizer = loaded.tokenizer
        self.config = architecture
        self._models = models
        self._lock = threading.Lock()
        self._last: _Seen | None = None

    def entries(self) -> Sequence[Entry]:
        """All models that the run has now."""
        with self._lock:
            return self._seen().entries

    def resolve(self, name: str) -> Hashable:
        """The key of a model; see :meth:`Catalog.resolve`."""
        with self._lock:
            seen = self._seen()
            if name not in seen.keys:
                try:
                    seen.keys[name] = self._key(seen, name)
                except InputError as error:
                    raise UnknownModel(f"{error} (model {name!r}; GET /v1/models lists the names)") from error
            return seen.keys[name]

    def express(self, key: Hashable) -> tuple[Params, bool]:
        """The weights of a key: those of base and experts as they were read, all others from their genomes.

        An expert that is an adapter is merged with the base, into new arrays.
        """
        kind, what, weights = key  # type: ignore[misc]
        models = self._models
        if kind == "base":
            return models.group.place(models.models.base, self.config), False
        if kind == "expert":
            merged = models.models.is_adapter(what)
            return models.group.place(models.models.expert_params(what), self.config), merged
        return models.express(models.genome(models.journal(), what, weights)), True

    def engine(self, slots: int, max_len: int) -> Engine:
        """An engine on the devices of the run's models."""
        return _engine(self.config, self.tokenizer, slots, max_len, mesh=self._models.group.mesh)

    def _seen(self) -> _Seen:
        """The run folder as it is now; it is read again only where one of its files has changed."""
        folder = self._models.config.folder
        stamp = tuple(map(_stamp, (folder / "history.jsonl", folder / "grid.json", folder / "tables" / "selection.json")))
        if self._last is None or self._last.stamp != stamp:
            run, journal = report.open_run(folder), self._models.journal()
            self._last = _Seen(stamp, journal, run, tuple(self._list(run, journal)), {})
        return self._last

    def _list(self, run: report.RunFolder, journal: Journal) -> list[Entry]:
        config = self._models.config
        found = [Entry("base", "base"), *(Entry(f"expert:{name}", "expert", {"task": name}) for name in config.expert_names)]
        started = all(journal.get(k) is not None for k in range(len(config.expert_names)))
        if not started or not (config.folder / "grid.json").exists():
            return found
        if config.export.method in ("aggregate", "best_elite") or run.selection:
            found.insert(0, Entry("final", "final", {"method": config.export.method}))
        children: dict[int, Entry] = {}
        for task, elites in run.archives.items():
            for one in elites:
                scores = {name: one[name] for name in (*run.tasks, "average")}
                facts = {"task": task, "cell": list(one["cell"]), "individual": one["id"], "scores": scores}
                found.append(Entry(f"elite:{task}/{','.join(map(str, one['cell']))}", "elite", facts))
                facts = {"individual": one["id"], "scores": scores}
                children.setdefault(one["id"], Entry(f"child:{one['id']}", "child", facts))
        return [*found, *(children[identity] for identity in sorted(children))]

    def _key(self, seen: _Seen, name: str) -> _Key:
        """The key of a name.

        Raises:
            InputError: there is no such model.
        """
        config = self._models.config
        kind, _, rest = name.partition(":")
        if name == "base":
            return "base", None, None
        if kind == "expert" and rest in config.expert_names:
            return "expert", rest, None
        if name == "final":
            choice = ModelChoice(config.export.method)
        elif kind == "elite":
            choice = ModelChoice.elite(rest)
        elif kind == "child" and rest.isdecimal() and len(rest) < 20:
            choice = ModelChoice("child", id=int(rest))
        else:
            raise InputError(
                "expected final, base, expert:TASK, elite:TASK/CELL or child:ID, got another name; choose one of them"
            )
        if name not in ("final", f"child:{choice.id}", f"elite:{choice.task}/{','.join(map(str, choice.cell))}"):
            # Names are kept: "child:007" and others would be without end.
            raise InputError(
                f"expected numbers without other signs, as in child:7 or elite:TASK/3,7, got {name!r:.80}; correct them"
            )
        found = find_ingredients(seen.folder, config, seen.journal, choice)
        return "merge", found.ids, found.weights


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
