"""Is an answer right: the answer in a text, one comparison per kind, and processes in which a comparison may hang.

    answers      where the answer stands in a text
    mathematics  equality as mathematics          choices   the letter of an option
    gym          the scorers of reasoning-gym     judge     one check of one answer by its kind
    pool         child processes that can be killed         worker    what runs in them

Knows nobody else in the library: rewards, tasks and evaluation all judge through it.
"""

from entrl.verify.pool import Verdict, VerifierError, VerifierPool, shared_pool

__all__ = ["Verdict", "VerifierError", "VerifierPool", "shared_pool"]
