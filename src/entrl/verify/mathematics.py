"""Equality as mathematics, by math-verify."""

# What sympy and the LaTeX grammar raise over an answer that is no mathematics: that answer is wrong. Anything else
# (memory, recursion, a bug) says nothing about the answer and must reach the pool as a crash.
UNREADABLE = (ValueError, TypeError, SyntaxError, AttributeError, ArithmeticError, LookupError)


def math_score(text: str, gold: str) -> float:
    """Equality as mathematics; a gold answer that math-verify cannot read is our problem, so it raises."""
    from math_verify import parse, verify

    marked = gold if "$" in gold or "\\boxed" in gold else f"\\boxed{{{gold}}}"
    gold_parsed = parse(marked, parsing_timeout=0) or parse(gold, parsing_timeout=0)
    if not gold_parsed:
        raise ValueError(f"math-verify cannot parse the gold answer {gold!r}; use verifier kind 'exact'")
    try:
        found = parse(text, parsing_timeout=0, raise_on_error=True)
        return float(verify(gold_parsed, found, timeout_seconds=0, raise_on_error=True))
    except UNREADABLE:
        return 0.0
