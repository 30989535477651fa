"""How a graph is asked: numbered edges, or if-then sentences about one person with invented attributes.

    symbolic   edges and numbers; |YES| and a path                 the last list is judged (`entrl.puzzles.graph`)
    worded     sentences; the next attribute on a proof            `judge_step`
    proof      sentences; all attributes of the proof, as a path   as symbolic

Source:  DeepRD, `graph_generator.py` (`process_graph_data`, `get_logic_line`): one shared name, invented attributes of
         two syllables, one of nine sentences for each edge, and the question for the next attribute
Differs: sentences and syllables are ours; right attributes are the first steps that the goal can be reached from;
         `proof` is added, for one guess in B of `worded` is right
"""

import re
from random import Random
from typing import Literal, get_args

from entrl.puzzles.graph import Graph
from entrl.puzzles.judged import Judged
from entrl.puzzles.naming import PEOPLE

Mode = Literal["symbolic", "worded", "proof"]
MODES = get_args(Mode)
SENTENCES = (
    "If {who} is {a}, {who} is {b}.",
    "If {who} is {a}, then {who} is {b} as well.",
    "Whoever is {a} is {b}.",
    "Everybody who is {a} is {b}.",
    "All who are {a} are {b}.",
    "Anyone {a} is also {b}.",
    "People who are {a} are {b}.",
    "If somebody is {a}, that person is {b}.",
    "Being {a} makes one {b}.",
)
SYLLABLES = ("cv", "cvc", "vc")
LETTERS = {"c": "bdfgklmnprstvz", "v": "aeiou"}
SAID = re.compile(r"answer\s{0,3}:", re.IGNORECASE)
WORD = re.compile(r"[\s*_`\"']{0,8}([A-Za-z]{1,40})[\s*_`\"'.]*")


def symbolic_prompt(graph: Graph) -> str:
    edges = ", ".join(f"({source}, {target})" for source, target in graph.edges)
    return (
        f"A directed graph has these edges; (a, b) leads from a to b.\n{edges}\n\n"
        f"Is there a path from {graph.start} to {graph.goal}, and which? Begin your answer with |YES| or |NO|. After "
        f"|YES|, end it with the vertices of the path, as path = [{graph.start}, ..., {graph.goal}]"
    )


def symbolic_line(graph: Graph) -> str:
    """`4>17,17>9|4>9:`, edges and then what is asked."""
    return f"{','.join(f'{source}>{target}' for source, target in graph.edges)}|{graph.start}>{graph.goal}:"


def worded(draw: Random, graph: Graph) -> Graph:
    """The same graph with attributes for vertices."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for vertex in dict.fromkeys(vertex for edge in graph.edges for vertex in edge):
        while (word := _attribute(draw)) in used:
            pass
        used.add(word)
        names[vertex] = word
    edges = tuple((names[source], names[target]) for source, target in graph.edges)
    return Graph(edges=edges, start=names[graph.start], goal=names[graph.goal])


def worded_prompt(draw: Random, graph: Graph, mode: Mode) -> str:
    """Sentences and question; the sentence of each edge and the person are drawn."""
    who = draw.choice(PEOPLE)
    facts = "\n".join(draw.choice(SENTENCES).format(who=who, a=source, b=target) for source, target in graph.edges)
    asked = (
        f"What is the next step of the proof: {who} is ___? End your answer with a line that says Answer: and the one "
        "attribute that belongs there."
        if mode == "worded"
        else "Write down every attribute of the proof in order, from the one that is given to the one that is wanted. "
        f"End your answer with them, as path = [{graph.start}, ..., {graph.goal}]"
    )
    return f"{facts}\n\nGiven that {who} is {graph.start}, we want to prove that {who} is {graph.goal}. {asked}"


def judge_step(graph: Graph, text: str) -> Judged:
    """The verdict on the attribute behind the last "answer:", up to the end of its line, or on a text of one word."""
    ends = [found.end() for found in SAID.finditer(text)]
    word = WORD.fullmatch(text[ends[-1] :].partition("\n")[0] if ends else text)
    step = word[1].lower() if word else None
    if step in graph.right_steps:
        return Judged(solved=True, length=1)
    if step in graph.first_steps:
        why = f"{step} does not lead to the goal"
        return Judged(solved=False, error="wrong_first_step", index=0, length=1, why=why)
    return Judged(solved=False, error="unusable", why="the answer names no first step")


def _attribute(draw: Random) -> str:
    shapes = draw.choice(SYLLABLES) + draw.choice(SYLLABLES)
    return "".join(draw.choice(LETTERS[sign]) for sign in shapes)
