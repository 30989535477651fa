"""An answer replayed move by move: solved, or the first move that is illegal and why.

The plan ends where the goal is reached; a plan that goes on is wrong from the next move (`after_goal`), or a walk over
every state would solve everything. It need not be the shortest.

Source:  The Illusion of Thinking: solved, index of the first illegal move, place of the first right list in a trace
Differs: there, thinking tokens locate a solution; here characters, which need no tokenizer
"""

from collections.abc import Sequence

from entrl.puzzles.judged import TRUNCATED, Judged
from entrl.puzzles.lists import Items, Unreadable, every_moves, last_moves
from entrl.puzzles.puzzle import IllegalMove, Puzzle


def judge_plan(puzzle: Puzzle, text: str) -> Judged:
    """The verdict on the last list of moves in a text."""
    try:
        moves = last_moves(text)
    except Unreadable as error:
        return Judged(solved=False, error=TRUNCATED if error.cut else "unreadable", why=str(error))
    return replay(puzzle, moves)


def replay(puzzle: Puzzle, moves: Sequence[Items]) -> Judged:
    state = puzzle.start()
    for index, items in enumerate(moves):
        try:
            if puzzle.solved(state):
                raise IllegalMove("after_goal", "the goal was reached before this move")
            state = puzzle.step(state, puzzle.read(items))
        except IllegalMove as error:
            return Judged(solved=False, error=error.error, index=index, length=len(moves), why=str(error))
    if not puzzle.solved(state):
        return Judged(solved=False, error="not_solved", length=len(moves), why="the goal is not reached")
    return Judged(solved=True, length=len(moves))


def first_solved_list(puzzle: Puzzle, trace: str) -> float | None:
    """Where in a trace the first right list of moves ends, as a share of its characters in (0, 1]; None without one."""
    ends = (found.end for found in every_moves(trace) if replay(puzzle, found.items).solved)
    end = next(ends, None)
    return None if end is None else end / len(trace)
