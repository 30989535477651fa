"""Names that make instances of one problem differ: the i-th choice out of a pool, without drawing the others."""

from collections.abc import Sequence
from math import comb, perm

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("123456789")
_COLOURS = """
red blue green white black yellow orange purple pink brown grey gold silver teal navy lime amber coral ivory
olive plum rust sand mint
"""
_PEOPLE = """
Ada Ali Amy Ana Ben Bo Cora Dan Dora Ed Ella Eva Finn Gil Gus Hal Ida Ines Ivo Jan Jo Kai Kim Lars Lea Leo Lin
Lou Luis Max May Mia Milo Mona Nadia Ned Nico Nina Noah Olga Omar Otto Pam Pia Quinn Ravi Rita Rosa Sam Sara
Sofia Ted Tim Tove Uma Vera Vic Will Yara Zoe
"""
COLOURS = tuple(_COLOURS.split())
PEOPLE = tuple(_PEOPLE.split())


def arrangement(index: int, pool: Sequence[str], k: int) -> tuple[str, ...]:
    """The `index`-th of the perm(len(pool), k) ordered choices of k different ones."""
    left, found = list(pool), []
    for i in range(k):
        rest = perm(len(left) - 1, k - i - 1)
        place, index = divmod(index, rest)
        found.append(left.pop(place))
    return tuple(found)


def combination(index: int, pool: Sequence[str], k: int) -> tuple[str, ...]:
    """The `index`-th of the comb(len(pool), k) choices of k different ones, in the order of the pool."""
    found = []
    for i, name in enumerate(pool):
        with_it = comb(len(pool) - i - 1, k - len(found) - 1) if len(found) < k else 0
        if index < with_it:
            found.append(name)
        else:
            index -= with_it
    return tuple(found)
