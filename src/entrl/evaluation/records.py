"""What an evaluation is made of: a record for each problem, kept as a JSON line when the problem is finished.

    FOLDER/settings.json    everything that decides the numbers; records of other settings are not mixed with these
    FOLDER/batch.json       answers written at once, which decide their last bits: a later start takes the same
    FOLDER/rank-N.jsonl     {"index": place in the data set, "seconds": of work so far, "record": {...}}

A kill loses the problems under way and no other. Units of problems that were asked together stay together, whoever
asks them and however often one started: with a batch size that is given, the numbers of a resumed evaluation, or of
one on several ranks, equal those of one that was neither. A batch that is found ("auto") depends on free memory and on
the number of ranks, among which it divides the problems evenly; a later start keeps it. Another one changes the company
of a problem: of transformers' answers the last bits, as what is drawn follows from (seed, problem, sample); of
dialogues the draws, which follow from (seed, first problem of a unit). No rank waits for another in here.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from entrl.settings.json_lines import finite

Record = dict[str, Any]
SETTINGS = "settings.json"
OWN = re.compile(r"rank-\d+\.jsonl|(settings|batch)\.(json|part)")
OURS = {"k", "greedy", "problems", "batch_size"}  # keys of the settings of every evaluation
PLAIN_S = 60.0  # between two lines where the output is no terminal, such as a job's log


class Work(Protocol):
    """An evaluation: problems in the order they are worked off, and what is made of their records."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the numbers, `OURS` among it."""
        ...

    @property
    def order(self) -> Sequence[int]:
        """Every problem's place in the data set, in the order of work."""
        ...

    @property
    def unit(self) -> int | None:
        """Problems that are asked together, in that order; None: each by itself."""
        ...

    def fitting(self, processes: int, ranks: int = 1) -> int | None:
        """Answers to write at once, where `processes` share this machine and `ranks` in all the problems; None where
        that is an engine's affair."""
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


def even(batch: int, per_problem: int, problems: int, ranks: int) -> int:
    """Answers to write at once, at most `batch`, so that no rank answers more than its even share in whole units.

    per_problem: answers. With one rank, or a batch of less than two problems, there is nothing to divide.
    """
    unit = batch // per_problem
    if ranks == 1 or unit < 2:
        return batch
    rounds = math.ceil(problems / (ranks * unit))
    return math.ceil(problems / (ranks * rounds)) * per_problem


def idle_ranks(work: Work, ranks: int) -> str | None:
    """What to say where ranks have no problems though others have more than an even share: units that are too large."""
    sizes = [len(share) for share in shares(work.order, work.unit, ranks)]
    if sizes[-1] or max(sizes) <= math.ceil(len(work.order) / ranks):
        return None
    return (
        f"{sizes.count(0)} of {ranks} ranks have nothing to do: {work.unit} of the {len(work.order)} problems are "
        "asked together; a smaller batch_size, or auto, divides them"
    )


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
        """Make the folder ready, on one rank alone; records of other settings go, with words.

        ValueError where what lies in it is no evaluation's.
        """
        refuse_foreign_records(self.folder)
        file = self.folder / SETTINGS
        new = self._plain
        old = _read(file)
        if self.folder.is_dir() and old != new:
            clear_records(self.folder)
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
        if _read(self.folder / SETTINGS) != self._plain:  # a rank whose disk is not the first one's
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


def refuse_foreign_records(folder: Path) -> None:
    """ValueError, before anything is written or deleted, for a place where something else lies than records."""
    if _foreign(folder):
        raise ValueError(
            f"{folder} would keep the records of an evaluation, and what is there is none's ({SETTINGS} with the keys "
            f"{', '.join(sorted(OURS))} is missing); nothing was touched: move it away, or name another place"
        )


def clear_records(folder: Path) -> list[str]:
    """Delete the records of an evaluation, of each of its tasks, and the folder if nothing is left; names of the rest.

    The settings go last, so that what a kill leaves is still known as ours.
    """
    if not folder.is_dir():
        return []
    known = not _foreign(folder)
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == SETTINGS):
        if _task(entry):
            clear_records(entry)
        elif known and OWN.fullmatch(entry.name) and (entry.is_file() or entry.is_symlink()):
            entry.unlink(missing_ok=True)
    left = sorted(entry.name for entry in folder.iterdir())
    if not left:
        with contextlib.suppress(OSError):  # a link to a folder stays
            folder.rmdir()
    return left


def _task(entry: Path) -> bool:
    """Of several, one task's records have a folder within."""
    return entry.name.isdecimal() and entry.is_dir() and not entry.is_symlink()


def _foreign(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists() or folder.is_symlink()
    if _read(folder / SETTINGS).keys() >= OURS:
        return False
    begun = Path(SETTINGS).with_suffix(".part").name  # all that a start leaves which is killed at once
    return not all(e.name == begun or (_task(e) and not _foreign(e)) for e in folder.iterdir())


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
        clear_records(kept.folder)
    return result


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # torn by a kill
        return {}
    return found if isinstance(found, dict) else {}


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
