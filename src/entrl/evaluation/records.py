"""What an evaluation is made of: a record for each problem, kept as a JSON line when the problem is finished.

    FOLDER/settings.json    everything that decides the numbers; records of other settings are not mixed with these
    FOLDER/batch.json       answers written at once, which decide their last bits: a later start takes the same
    FOLDER/rank-N.jsonl     {"index": place in the data set, "seconds": of work so far, "record": {...}}

A kill loses the problems under way and no other. Units of problems that were asked together stay together, whoever
asks them and however often one started: the numbers of a resumed evaluation, or of one on several ranks, equal those
of one that was neither. No rank waits for another in here.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from entrl.settings.json_lines import finite

Record = dict[str, Any]
PLAIN_S = 60.0  # between two lines where the output is no terminal, such as a job's log


class Work(Protocol):
    """An evaluation: problems in the order they are worked off, and what is made of their records."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def order(self) -> Sequence[int]:
        """Every problem's place in the data set, in the order of work."""
        ...

    @property
    def unit(self) -> int | None:
        """Problems that are asked together, in that order; None: each by itself."""
        ...

    def fitting(self, processes: int) -> int | None:
        """Answers to write at once, where `processes` share this machine; None where that is an engine's affair."""
        ...

    def ready(self, batch: int | None) -> None:
        """Before `unit` and `records`: write `batch` answers at once."""
        ...

    def records(self, indices: Sequence[int]) -> Generator[tuple[int, Record]]:
        """(place, record) of these problems as they finish; works through them `unit` at a time."""
        ...

    def result(self, records: Sequence[Record], seconds: float) -> dict[str, Any]:
        """The evaluation, of the records of all problems in the data set's order."""
        ...


@dataclass(kw_only=True)
class Done:
    """Records by place in the data set, and the seconds their work took."""

    records: dict[int, Record] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: "Done") -> None:
        self.records.update(other.records)
        self.seconds = max(self.seconds, other.seconds)

    def in_order(self, count: int) -> list[Record]:
        missing = [i for i in range(count) if i not in self.records]
        if missing:
            raise RuntimeError(f"{len(missing)} of {count} problems have no answer, the first is {missing[0]}")
        return [self.records[i] for i in range(count)]


def shares(order: Sequence[int], unit: int | None, ranks: int) -> list[list[int]]:
    """The problems of each rank, units whole and dealt out in turn; every problem is somebody's."""
    size = unit or 1
    units = [order[start : start + size] for start in range(0, len(order), size)]
    return [[i for u in units[rank::ranks] for i in u] for rank in range(ranks)]


@dataclass(kw_only=True)
class Partial:
    """The records of an evaluation that is not finished, in a folder of their own."""

    folder: Path
    settings: Mapping[str, Any]

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make the folder ready, on one rank alone; records of other settings go, with words."""
        file = self.folder / "settings.json"
        new = self._plain
        old = _read(file)
        if self.folder.is_dir() and old != new:
            shutil.rmtree(self.folder)
            if old:
                differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
                say(f"{self.folder.name} holds records of an evaluation with other {', '.join(differ)}: starting anew")
        self.folder.mkdir(parents=True, exist_ok=True)
        if old != new:
            part = file.with_suffix(".part")
            part.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
            part.replace(file)

    @property
    def _plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(finite(dict(self.settings)), default=str))

    def batch(self, fitting: Callable[[], int | None]) -> int | None:
        """What an earlier start settled on, else `fitting`, which is kept; on one rank alone."""
        file = self.folder / "batch.json"
        if "batch" in (kept := _read(file)):
            return kept["batch"]
        file.write_text(json.dumps({"batch": (found := fitting())}) + "\n", encoding="utf-8")
        return found

    def read(self) -> Done:
        """What all ranks have kept; a line that a kill has torn is left out."""
        done = Done()
        if _read(self.folder / "settings.json") != self._plain:  # a rank whose disk is not the first one's
            return done
        for file in sorted(self.folder.glob("rank-*.jsonl")):
            for line in file.read_bytes().split(b"\n")[:-1]:
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    done.add(Done(records={row["index"]: row["record"]}, seconds=row["seconds"]))
        return done

    @contextlib.contextmanager
    def writing(self, rank: int) -> Iterator[Callable[[int, Record, float], None]]:
        """A function that keeps a record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{rank}.jsonl"
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" if torn else "")

            def keep(index: int, record: Record, seconds: float) -> None:
                file.write(json.dumps(finite({"index": index, "seconds": seconds, "record": record})) + "\n")
                file.flush()

            yield keep

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def work_off(
    work: Work,
    *,
    partial: Partial | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
    between: Callable[[], None] = lambda: None,
) -> Done:
    """This rank's share of an evaluation, and what was kept before; `partial` is prepared, `work` ready.

    between: called after each problem; what it raises ends the work
    """
    done = Done() if partial is None else partial.read()
    began, before = time.monotonic(), done.seconds
    unit, mine = work.unit or 1, shares(work.order, work.unit, ranks)[rank]
    units = [mine[start : start + unit] for start in range(0, len(mine), unit)]
    left = [i for u in units if any(i not in done.records for i in u) for i in u]
    with contextlib.ExitStack() as stack:
        keep = None if partial is None else stack.enter_context(partial.writing(rank))
        bar = stack.enter_context(_bar(progress and bool(left)))
        task = bar.add_task("evaluating", total=len(mine), completed=len(mine) - len(left))
        source = stack.enter_context(contextlib.closing(work.records(left))) if left else iter(())
        said = began
        for index, record in source:
            done.seconds = before + time.monotonic() - began
            bar.advance(task)
            if progress and not bar.console.is_terminal and time.monotonic() - said > PLAIN_S:
                said = time.monotonic()
                bar.console.print(_line(bar.tasks[0]), highlight=False)
            if index not in done.records:  # one of a unit that a kill cut is asked again with the others, and kept once
                done.records[index] = record = json.loads(json.dumps(finite(record)))
                if keep is not None:
                    keep(index, record, done.seconds)
            between()
    return done


def _line(task: Any) -> str:
    left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
    return f"evaluating: {task.completed:.0f} of {task.total:.0f} problems, {task.elapsed:.0f} s gone{left}"


def run(work: Work, *, partial: Path | None, say: Callable[[str], None] = print, progress: bool = True) -> dict:
    """An evaluation on one process, from where `partial` has got; the folder goes when it is finished."""
    kept = None if partial is None else Partial(folder=partial, settings=work.settings)
    if kept is None:
        work.ready(work.fitting(1))
    else:
        kept.prepare(say)
        work.ready(kept.batch(lambda: work.fitting(1)))
    done = work_off(work, partial=kept, progress=progress)
    result = work.result(done.in_order(len(work.order)), done.seconds)
    if kept is not None:
        kept.remove()
    return result


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # torn by a kill
        return {}


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("problems,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("left"),
        console=Console(stderr=True),  # results go to the other
        transient=True,
        disable=not shown,
        speed_estimate_period=3600,  # s; problems end in bursts
    )
