"""Tables to ask about: hypotheses in rows, questions in columns, one answer in each cell.

    L[h, a] = 1 - noise           a is the cell of (h, question)
              noise / (A - 1)     any other answer                   (K, A), rows sum to 1

`procedural_table` invents a small world per seed; `animals` is written by hand; `find_table` finds either by its id, or
a table of the user's own (`entrl.environments.table_files`).

Source:  method card information-gain, sections 10.1 and 11; the words, the animals and the rules are ours
Needs:   numpy

K hypotheses, Q questions, A answers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from entrl.beliefs import DuplicateHypothesis, EmptyHypothesisSpace, InvalidDistribution, ShapeMismatch, UnknownAnswer
from entrl.beliefs.information import Array, checked_distribution, checked_likelihood

YES_NO = ("no", "yes")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words("mi ka zo ru to lo ba ni su vo pa da gi fu ha re")
_SECOND = _words("zo ru la ne ki mo ta vi lu po ra di ve na gu so ti bo le mu")
# Every pair of syllables once, in an order in which neighbours look different: small tables use the first names only.
NAMES: tuple[str, ...] = tuple(_FIRST[i % 16] + _SECOND[(i // 16 + i) % 20] for i in range(320))

# One tuple per level of the taxonomy, the most general first; the last holds the words that tell (almost) nothing.
ATTRIBUTES: tuple[tuple[str, ...], ...] = tuple(
    _words(level)
    for level in (
        "fur wings scales water warm tail night plants legs large loud fast "
        "eggs meat wild smooth bright land tame quiet small slow rough dark",
        "horns fins shell beak claws hooves stripes spots swims climbs digs jumps "
        "mane crest whiskers gills hides hunts grazes nests herds sings stings glides",
        "tusks antlers pouch fangs spines venom frill hump blue red green golden "
        "plumes webs trunk spikes silver black white orange purple pink brown grey",
        "river desert forest mountain cave swamp island reef meadow tundra jungle lake "
        "savanna coast cliff valley glacier dune marsh prairie canyon lagoon volcano steppe",
        "berries nectar seeds roots insects fish worms honey moss bark leaves fungi "
        "crabs snails algae nuts grass fruit clay bones sap reeds pollen lichen",
        "alive wooden known grows painted seen eats electric named sleeps wheeled drawn",
    )
)
IDLE = len(ATTRIBUTES) - 1  # the level of the words that tell nothing
FEW = 8  # small tables use only the first words of a level, so that a small vocabulary holds them
FEW_NAMES = 32
MAX_REPAIRS = 10_000  # cells changed to make rows distinct before we give up


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Who could be meant, what can be asked, and what the answer would be.

    Raises EmptyHypothesisSpace, DuplicateHypothesis (names or questions that differ in capitals only count as equal),
    ShapeMismatch, UnknownAnswer (a cell that is no answer), InvalidDistribution (prior, likelihoods).
    """

    table_id: str
    hypotheses: tuple[str, ...]
    questions: tuple[str, ...]
    values: Array  # (K, Q) int: which answer
    answers: tuple[str, ...] = YES_NO
    prior: Array | None = None  # (K,), None: all alike
    likelihoods: Array | None = None  # (Q, K, A) where answers are uncertain by themselves; `values` are their modes
    # (Q,) the answers a question can have, where questions share an alphabet that means nothing to some: nobody is
    # wrong about wings by saying "four". None, and a question with fewer than two: all.
    own_answers: tuple[tuple[int, ...], ...] | None = None
    rendering: Callable[[str, int], str] | None = None  # the user's own wording of (question, answer)

    def __post_init__(self) -> None:
        _check_names(self.hypotheses, "hypothesis", EmptyHypothesisSpace)
        _check_names(self.questions, "question", ShapeMismatch)
        _check_names(self.answers, "answer", ShapeMismatch)
        shape, values = (len(self.hypotheses), len(self.questions)), np.asarray(self.values)
        if values.shape != shape:
            raise ShapeMismatch(f"values have shape {values.shape}; they need {shape[0]} rows and {shape[1]} columns")
        if values.dtype.kind not in "iub" or bool(((values < 0) | (values >= len(self.answers))).any()):
            raise UnknownAnswer(f"values must be indices of the {len(self.answers)} answers {list(self.answers)}")
        object.__setattr__(self, "values", values.astype(np.int64))
        if self.prior is not None:
            prior = checked_distribution(self.prior, what=f"the prior of {self.table_id}", length=shape[0])
            object.__setattr__(self, "prior", prior)
        if self.likelihoods is not None:
            if len(self.likelihoods) != shape[1]:
                raise ShapeMismatch(f"{len(self.likelihoods)} likelihoods for {shape[1]} questions")
            tables = [checked_likelihood(one, hypotheses=shape[0]) for one in self.likelihoods]
            if any(one.shape[1] != len(self.answers) for one in tables):
                raise ShapeMismatch(f"a likelihood has not one column for each of {list(self.answers)}")
            object.__setattr__(self, "likelihoods", np.stack(tables))

        if self.own_answers is not None and len(self.own_answers) != shape[1]:
            raise ShapeMismatch(f"{len(self.own_answers)} sets of answers for {shape[1]} questions")

    @functools.cached_property
    def _columns(self) -> dict[str, int]:
        return {question: column for column, question in enumerate(self.questions)}

    def likelihood(self, question: str, *, noise: float = 0.0) -> Array:
        """(K, A): P(answer | hypothesis). UnknownAnswer.

        noise: share of the mass that goes to the other answers of the question (`own_answers`).
        """
        if question not in self._columns:
            raise UnknownAnswer(f"unknown question {question!r}; {self.table_id} has {len(self.questions)} others")
        return self.tensor(noise)[self._columns[question]]

    def tensor(self, noise: float = 0.0) -> Array:
        """(Q, K, A): `likelihood` of every question; do not write into it."""
        return _tensor(self, float(noise))

    def render(self, question: str, answer: int) -> str:
        """What the player reads: the answer's name, or the table's own wording."""
        return self.answers[answer] if self.rendering is None else str(self.rendering(question, answer))


@functools.lru_cache(maxsize=256)
def _tensor(table: Table, noise: float) -> Array:
    count = len(table.answers)
    if not 0 <= noise <= 1 or (noise > 0 and count == 1):
        raise InvalidDistribution(f"noise must be in [0, 1] (and 0 for a single answer), got {noise}")
    sure = np.eye(count)[table.values.T] if table.likelihoods is None else table.likelihoods
    if noise == 0 or table.own_answers is None:
        noisy = sure if noise == 0 else (1 - noise) * sure + noise * (1 - sure) / (count - 1)
    else:
        own_Q1A = np.array([[a in own or len(own) < 2 for a in range(count)] for own in table.own_answers])[:, None]
        noisy = (1 - noise) * sure + noise * own_Q1A * (1 - sure) / (own_Q1A.sum(2, keepdims=True) - 1)
    noisy.flags.writeable = False
    return noisy


def _check_names(names: tuple[str, ...], what: str, empty: type[ValueError]) -> None:
    if not names:
        raise empty(f"a table needs at least one {what}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ShapeMismatch(f"{what} {name!r} must be a string that is not empty")
        if name.strip().casefold() in seen:
            raise DuplicateHypothesis(f"{what} {name!r} is there twice; capitals and spaces around do not count")
        seen.add(name.strip().casefold())


def level_of(attribute: str) -> int | None:
    """The taxonomy level a procedural word always belongs to; IDLE for the useless ones, None for other words."""
    return next((level for level, words in enumerate(ATTRIBUTES) if attribute in words), None)


@functools.lru_cache(maxsize=4096)
def procedural_table(seed: int, *, rows: int = 16, columns: int = 16, flip: float = 0.05) -> Table:
    """A small invented world; the same arguments give the same table on every machine.

    The rows are the leaves of a balanced taxonomy: level 0 has 8 groups, each next level twice as many, until a row is
    a group of its own. A word of level l belongs to a share 2^-(l+1) of the groups of its level, in whole groups,
    so level-0 words split a table about in half and each next level is half as frequent; rows of one group are alike in
    all words down to its level. Then each cell is turned over with probability `flip`. A word always belongs to
    one level (`level_of`), so what its question is worth at the start is the same from table to table; which rows have
    it is not.

    One column in eight (none below 8) is useless: `alive` and others are true for all rows, `wooden` and others for
    none, `known` and others repeat another column up to one row. Always the same words.

    Rows are distinct: cells are turned over until they are. Names are drawn from the first max(32, rows) of NAMES,
    words from the first max(8, needed) of a level. Order of rows and columns is random.
    Raises ValueError for sizes the word lists cannot fill, or too few columns to tell the rows apart.
    """
    _check_size(rows, columns, flip)
    rng = np.random.default_rng([seed, rows, columns, round(flip * 1e6)])
    counts = _words_per_level(rows, columns)
    leaves = rng.permutation(rows)
    named: list[tuple[str, Array]] = []
    for level, count in enumerate(counts[:IDLE]):
        for word in _drawn(rng, ATTRIBUTES[level], count):
            named.append((word, _inherited(rng, leaves, level) ^ (rng.random(rows) < flip)))
    useful = np.stack([column for _, column in named], 1)
    _make_distinct(rng, useful)
    named = [(word, useful[:, i]) for i, (word, _) in enumerate(named)]
    for word in _drawn(rng, ATTRIBUTES[IDLE], counts[IDLE]):
        named.append((word, _useless(rng, ATTRIBUTES[IDLE].index(word), useful)))
    order = rng.permutation(columns)
    names = NAMES[: max(FEW_NAMES, rows)]
    suffix = "" if flip == 0.05 else f",flip={flip!r}"
    return Table(
        table_id=f"procedural:rows={rows},columns={columns},seed={seed}{suffix}",
        hypotheses=tuple(names[i] for i in rng.permutation(len(names))[:rows]),
        questions=tuple(named[i][0] for i in order),
        values=np.stack([named[i][1] for i in order], 1).astype(np.int64),
    )


def _check_size(rows: int, columns: int, flip: float) -> None:
    most = sum(map(len, ATTRIBUTES))
    if not 1 <= rows <= len(NAMES) or not 1 <= columns <= most:
        raise ValueError(f"rows must be in 1..{len(NAMES)} and columns in 1..{most}, got {rows} and {columns}")
    if not 0 <= flip < 0.5:
        raise ValueError(f"flip must be in [0, 0.5), got {flip}")
    useful = columns - min(columns // 8, len(ATTRIBUTES[IDLE]))
    if 2**useful < rows:
        raise ValueError(f"{columns} columns ({useful} useful) cannot tell {rows} rows apart; ask for more columns")


def _words_per_level(rows: int, columns: int) -> list[int]:
    """As many words of each level, the general ones first; what a level lacks goes to the others."""
    counts = [0] * len(ATTRIBUTES)
    counts[IDLE] = min(columns // 8, len(ATTRIBUTES[IDLE]))
    deepest = int(np.clip(np.ceil(np.log2(rows)) - 1, 3, IDLE)) if rows > 1 else 3
    left = columns - counts[IDLE]
    while left:
        open_levels = [v for v in range(deepest) if counts[v] < len(ATTRIBUTES[v])] or [
            v for v in range(IDLE) if counts[v] < len(ATTRIBUTES[v])
        ]
        for level in open_levels[:left]:
            counts[level] += 1
            left -= 1
    return counts


def _drawn(rng: np.random.Generator, words: tuple[str, ...], count: int) -> list[str]:
    pool = words[: max(FEW, count)]
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _inherited(rng: np.random.Generator, leaves: Array, level: int) -> Array:
    """(rows,) bool: true for whole groups of this level of the tree. Group i holds the leaves i n / groups onwards."""
    rows = len(leaves)
    groups = min(2 ** (level + 3), rows)
    marked = np.zeros(groups, dtype=bool)
    marked[rng.permutation(groups)[: max(1, round(groups * 2.0 ** -(level + 1)))]] = True
    column = np.zeros(rows, dtype=bool)
    column[leaves] = marked[np.arange(rows) * groups // rows]
    return column


def _make_distinct(rng: np.random.Generator, useful: Array) -> None:
    """Turn over cells of rows that equal an earlier one, in place."""
    for _ in range(MAX_REPAIRS):
        _, first = np.unique(useful, axis=0, return_index=True)
        twins = np.setdiff1d(np.arange(len(useful)), first)
        if not len(twins):
            return
        useful[rng.choice(twins), rng.integers(useful.shape[1])] ^= True
    raise ValueError(f"could not tell {useful.shape[0]} rows apart by {useful.shape[1]} columns; ask for more columns")


def _useless(rng: np.random.Generator, which: int, useful: Array) -> Array:
    """True for all, for none, or another column with one row turned over; the word decides which."""
    if which % 3 < 2:
        return np.full(len(useful), which % 3 == 0)
    column = useful[:, rng.integers(useful.shape[1])].copy()
    column[rng.integers(len(column))] ^= True
    return column


# Our judgement from general knowledge, of the typical adult. `large`: heavier than a person; `small`: fits in a hand;
# `meat` and `plants`: eats mostly that; `fast`: gets away from a running person; `cold`: at home where it freezes.
_QUALITIES = _words(
    "fur feathers scales wings flies swims eggs pet farm horns hooves stripes spots tail large small meat plants night "
    "africa cold fast sea herds"
)
_ANIMALS = """
cat: fur pet tail meat night fast
dog: fur pet tail meat fast swims
horse: fur farm hooves tail large plants fast herds
cow: fur farm hooves horns spots tail large plants herds
pig: farm hooves tail
sheep: fur farm hooves tail plants herds
goat: fur farm hooves horns tail plants herds
rabbit: fur pet farm tail plants fast
mouse: fur tail small night
bat: fur wings flies small meat night herds
elephant: swims tail large plants africa herds
giraffe: fur hooves spots tail large plants africa fast herds
zebra: fur hooves stripes tail large plants africa fast herds
lion: fur tail large meat night africa fast herds
tiger: fur swims stripes tail large meat night fast
bear: fur swims large cold fast
wolf: fur tail meat night cold fast herds
deer: fur hooves horns plants fast herds
kangaroo: fur tail large plants night fast herds
monkey: fur tail plants herds
whale: swims tail large meat cold sea
dolphin: swims tail large meat fast sea herds
penguin: feathers wings swims eggs meat cold sea herds
eagle: feathers wings flies eggs tail meat fast
owl: feathers wings flies eggs tail meat night
chicken: feathers wings eggs farm tail herds
duck: feathers wings flies swims eggs farm tail
ostrich: feathers wings eggs large plants africa fast herds
frog: swims eggs small meat night
snake: scales eggs tail meat
crocodile: scales swims eggs tail large meat night africa
shark: scales swims tail large meat fast sea
"""


@functools.lru_cache(maxsize=1)
def animals() -> Table:
    """32 familiar animals x 24 everyday attributes, yes or no, written by hand; rows are distinct."""
    lines = [line.split(": ") for line in _ANIMALS.strip().splitlines()]
    rows = [set(words.split()) for _, words in lines]
    assert set().union(*rows) == set(_QUALITIES)
    return Table(
        table_id="animals",
        hypotheses=tuple(name for name, _ in lines),
        questions=_QUALITIES,
        values=np.array([[int(word in row) for word in _QUALITIES] for row in rows]),
    )
