"""Is an answer right: the answer in a text, one comparison per kind, and processes in which a comparison may hang.

    answers      the answer part of a text        statements   which few characters of it state the result
    characters   one table of signs               reading      a statement as a value (values, regions, quantities,
    choices      the letter of an option                       units, expressions, numerics)
    mathematics  equality as mathematics          comparison   two values
    gym          scores of reasoning-gym: whose scorer is inert (gym_scorers), ours for the others (gym_graders) and
                 the expressions these read (gym_expressions)
    judge        one check of one answer by its kind
    pool         child processes to be killed     worker       what runs in them

Knows nobody else in the library but `puzzles`, whose verdicts it hands on, and how the sandbox ends processes: rewards,
tasks and evaluation all judge through it.
"""

from entrl.verify.pool import Verdict, VerifierError, VerifierPool, shared_pool

__all__ = ["Verdict", "VerifierError", "VerifierPool", "shared_pool"]
