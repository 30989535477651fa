"""Search traces of Countdown and Sudoku: written, read, done again, shortened and spoilt (`docs/search_traces.md`).

steps        typed steps and their text          search     depth-first search, the walk that does a trace again
game         what a search needs to know         detours    k wrong branches
countdown, sudoku   the two games                dropping   Dualformer's levels
problems     the game of a row of `load_task`    noise      static and dynamic
lessons      all of it in one lesson of a cold start
"""

from entrl.traces.detours import detours
from entrl.traces.dropping import DropSpec, drop_trace
from entrl.traces.lessons import Lesson, TraceSpec, trace_lesson
from entrl.traces.noise import NoiseSpec, static_noise
from entrl.traces.problems import Problem, problem_of
from entrl.traces.search import Walk, search, walk
from entrl.traces.steps import Step, TraceError, read, write

__all__ = [
    "DropSpec",
    "Lesson",
    "NoiseSpec",
    "Problem",
    "Step",
    "TraceError",
    "TraceSpec",
    "Walk",
    "detours",
    "drop_trace",
    "problem_of",
    "read",
    "search",
    "static_noise",
    "trace_lesson",
    "walk",
    "write",
]
