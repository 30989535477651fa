"""Slow twins of the puzzles: an answer read character by character, moves replayed on what the prompt says.

Nothing of `entrl.puzzles` is used. The simulators know a puzzle from its prompt alone, so a prompt that says something
else than the rules do is found too. Verdicts are (solved, error, index); error is None, "unreadable", "unfinished",
"not_solved", "after_goal" or "illegal".
"""

import random
import re

ILLEGAL = "illegal"


class Bad(Exception):
    pass


def read_moves(text: str):
    """Moves of the last list of lists; "unreadable" or "unfinished"."""
    opens = [i for i, char in enumerate(text) if char == "[" and text[max(0, i - 1) : i] != "\\"]
    starts = [i for i in opens if text[i + 1 :].lstrip()[:1] == "["]
    if not starts:
        return "unreadable"
    start = starts[-1]
    moves, at, want = [], start + 1, "move"
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return "unfinished"
        char = text[at]
        if char == "]" and moves and want in ("comma", "move"):
            at += 1
            break
        if char == "," and want == "comma":
            want, at = "move", at + 1
            continue
        if char != "[" or want != "move":
            return "unreadable"
        inside, at = "", at + 1
        while at < len(text) and text[at] not in "[]":
            inside, at = inside + text[at], at + 1
        if at == len(text):
            return "unfinished"
        if text[at] == "[":
            return "unreadable"
        if split(inside) is None:
            return "unreadable"  # the first fault counts, also where the text is cut later
        moves.append(split(inside))
        want, at = "comma", at + 1
    return moves if stands_alone(text, start, at) else "unreadable"


def split(inside: str):
    parts = [part.strip() for part in inside.split(",")]
    if len(parts) >= 2 and parts[-1] == "":
        parts = parts[:-1]
    words = []
    for part in parts:
        if len(part) >= 3 and part[0] == part[-1] and part[0] in ("'", '"'):
            part = part[1:-1]
        if part == "" or "'" in part or '"' in part:
            return None
        words.append(part)
    return words


def stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[:start].rstrip(), text[end:].lstrip()
    if before.endswith("[") and not before.endswith("\\["):
        return False
    if before.endswith(",") and before[:-1].rstrip().endswith("]"):
        return False
    return not (after.startswith("]") or (after.startswith(",") and after[1:].lstrip().startswith("[")))


class HanoiTwin:
    def __init__(self, prompt: str) -> None:
        start, goal = re.search(r"on peg (\w+), the.*to peg (\w+)\.\n", prompt, re.DOTALL).groups()
        many = re.search(r"1 \(the smallest\) to (\d+)", prompt)
        names = re.search(r"three pegs: (.*?)\.", prompt)[1].split(", ")
        self.pegs = {name: [] for name in names}
        self.pegs[start] = [str(i) for i in range(int(many[1]) if many else 1, 0, -1)]
        self.goal, self.disks = goal, len(self.pegs[start])

    def done(self):
        return len(self.pegs[self.goal]) == self.disks

    def move(self, items):
        disk, source, target = items
        if source == target or self.pegs[source][-1] != disk:
            raise Bad
        if self.pegs[target] and int(self.pegs[target][-1]) < int(disk):
            raise Bad
        self.pegs[target].append(self.pegs[source].pop())


class CheckersTwin:
    def __init__(self, prompt: str) -> None:
        first, last = map(int, re.search(r"numbered (\d+) to (\d+)", prompt).groups())
        self.left, self.right = re.search(r"- (\w+) moves to the right only, (\w+) to the left only", prompt).groups()
        gap = int(re.search(r"one empty square \(number (\d+)\)", prompt)[1])
        self.row = {str(i): self.left if i < gap else self.right for i in range(first, last + 1)}
        self.row[str(gap)] = ""
        self.goal = dict(zip(self.row, reversed(self.row.values()), strict=True))

    def done(self):
        return self.row == self.goal

    def move(self, items):
        colour, source, target = items
        if not colour or self.row[source] != colour or self.row[target] != "":
            raise Bad
        forward = (int(target) - int(source)) * (1 if colour == self.left else -1)
        between = self.row[str((int(source) + int(target)) // 2)]
        if not (forward == 1 or (forward == 2 and between not in ("", colour))):
            raise Bad
        self.row[source], self.row[target] = "", colour


class RiverTwin:
    def __init__(self, prompt: str) -> None:
        self.agent = dict(re.findall(r"(\w+) \(agent: (\w+)\)", prompt))
        self.boat = int(re.search(r"at most (\d+) people", prompt)[1])
        self.banks = [set(self.agent) | set(self.agent.values()), set()]
        self.side = 0

    def done(self):
        return not self.banks[0]

    def move(self, items):
        if len(set(items)) < len(items) or len(items) > self.boat or not set(items) <= self.banks[self.side]:
            raise Bad
        self.banks[self.side] -= set(items)
        self.banks[1 - self.side] |= set(items)
        self.side = 1 - self.side
        for group in (set(items), *self.banks):
            for actor in group & set(self.agent):
                others = group & {agent for of, agent in self.agent.items() if of != actor}
                if others and self.agent[actor] not in group:
                    raise Bad


class BlocksTwin:
    def __init__(self, prompt: str) -> None:
        self.stacks = self.stacks_of(re.search(r"Start: (.*)", prompt)[1])
        self.goal = self.stacks_of(re.search(r"Goal: (.*)", prompt)[1])

    @staticmethod
    def stacks_of(line):
        found = re.findall(r"stack (\w+): ([^;]*)", line)
        return {name: [] if blocks == "empty" else blocks.split() for name, blocks in found}

    def done(self):
        return self.stacks == self.goal

    def move(self, items):
        block, source, target = items
        if source == target or self.stacks[source][-1] != block:
            raise Bad
        self.stacks[target].append(self.stacks[source].pop())


TWINS = {"hanoi": HanoiTwin, "checkers": CheckersTwin, "river": RiverTwin, "blocks": BlocksTwin}


def replayed(name: str, prompt: str, moves):
    twin = TWINS[name](prompt)
    for index, items in enumerate(moves):
        if twin.done():
            return False, "after_goal", index
        try:
            twin.move(items)
        except (Bad, KeyError, IndexError, ValueError):  # what is illegal, unknown, empty or too many
            return False, ILLEGAL, index
    return (True, None, None) if twin.done() else (False, "not_solved", None)


def verdict(name: str, prompt: str, text: str):
    moves = read_moves(text)
    return (False, moves, None) if isinstance(moves, str) else replayed(name, prompt, moves)


def read_path(text: str):
    opens = [i for i, char in enumerate(text) if char == "[" and text[max(0, i - 1) : i] != "\\"]
    if not opens:
        return "unreadable"
    end = text.find("]", opens[-1])
    inside = text[opens[-1] + 1 : end]
    if end < 0:
        return "unfinished"
    if "[" in inside or not stands_alone(text, opens[-1], end + 1):  # an escaped bracket is one inside too
        return "unreadable"
    return split(inside) or "unreadable"


def path_verdict(edges, start, goal, text):
    """(solved, score of the source or None where unreadable), by enumeration of all paths of a small acyclic graph."""
    marks = re.findall(r"(?=(\|YES\||\|NO\|))", text)  # two may share a stroke
    path = read_path(text)
    if (
        (marks and marks[-1] == "|NO|")
        or isinstance(path, str)
        or len(path) < 2
        or (path[0], path[-1]) != (start, goal)
    ):
        return False, 0
    good = all_paths(edges, start, goal)
    if path in good:
        return True, 2
    return False, -1 if path[1] in {one[1] for one in good} else -2


def all_paths(edges, start, goal):
    if start == goal:
        return [[goal]]
    return [[start, *rest] for a, b in edges if a == start for rest in all_paths(edges, b, goal)]


def step_verdict(edges, start, goal, text):
    """(solved, score of the source) of the one attribute that is asked, read character by character."""
    low, at = text.lower(), -1
    for i in range(len(low)):  # the last "answer", up to three spaces, colon
        rest = low[i:]
        if rest.startswith("answer"):
            spaces = len(rest[6:]) - len(rest[6:].lstrip())
            if spaces <= 3 and rest[6 + spaces : 7 + spaces] == ":":
                at = i + 7 + spaces
    word = text if at < 0 else text[at:].split("\n")[0]
    before = 0
    while before < len(word) and (word[before].isspace() or word[before] in "*_`\"'"):
        before += 1
    word = word[before:]
    while word and (word[-1].isspace() or word[-1] in "*_`\"'."):
        word = word[:-1]
    letters = all("a" <= char <= "z" or "A" <= char <= "Z" for char in word)
    good = {path[1] for path in all_paths(edges, start, goal)}
    if before > 8 or not letters or not 0 < len(word) <= 40 or word.lower() not in {b for a, b in edges if a == start}:
        return False, 0
    return (True, 2) if word.lower() in good else (False, -2)


PIECES = (
    "moves = ", "[", "]", "[[", "]]", ",", ", ", " ", "\n", "'", '"', "\\[", "\\]", "```python\n", "```", "$",
    "\\boxed{", "}", "1", "2", "A", "B", "１", "\u00a0", "[]", "[[]]", "...", "so the answer is ", "No, wait: ", "null",
    "-1", "0x1", "|YES|", "|NO|", "path = ", "<answer>", "</answer>", "\x00", "\u202e", "é",
)  # fmt: skip


WORDS = (
    "Answer: ", "answer :", "ANSWER", ":", "Answer:\n", " or ", ".", "**", "`", "_", "'", '"', " " * 9, "\n", "not ",
    "The answer: ", "Final answer", "a", "Z", "ä", "ı", "\u00a0", "\x00", "<answer>", "</answer>", "[", "|NO|", ", ",
)  # fmt: skip


def attack(draw: random.Random, answers: list[str], pieces: tuple[str, ...] = PIECES) -> str:
    """A text around and inside of right and wrong answers: prose, repeats, cuts, brackets, single characters."""
    parts = []
    for _ in range(draw.randint(1, 4)):
        parts.append(draw.choice(answers) if draw.random() < 0.5 else draw.choice(pieces))
    text = draw.choice(("", " ", "\n", ", ")).join(parts)
    for _ in range(draw.choice((0, 0, 1, 1, 2, 6))):
        at = draw.randrange(len(text) + 1)
        what = draw.random()
        if what < 0.35:
            text = text[:at] + draw.choice(pieces) + text[at:]
        elif what < 0.6:
            text = text[:at] + text[at + draw.randint(1, 3) :]
        elif what < 0.75:
            text = text[:at]
        elif what < 0.9:
            other = draw.randrange(len(text) + 1)
            text = text[:at] + text[min(at, other) : max(at, other)] + text[at:]
        else:
            text = text[at:]
    return text
