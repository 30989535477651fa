"""Dialogues of different lengths on two processes, written by servers: every rank takes part until nobody asks."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dialogue_runs import ROWS, writer
from scripted_servers import Scripted

from entrl.controllers.hooks import OneRank
from entrl.trainers.grpo.turn_rounds import TurnRounds

REPOSITORY = Path(__file__).parents[1]


def answers(tool_mask: list[int]) -> int:
    """How often somebody else than the model spoke: runs of 0."""
    return sum(before == 1 and after == 0 for before, after in pairwise(tool_mask))


@pytest.mark.multiprocess
def test_two_processes_whose_dialogues_differ_in_length_play_what_one_plays(tmp_path):
    """Rank 0's games end in their first turn, rank 1's go on for up to six: unequal numbers of calls to the servers."""
    server = Scripted(writer())
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY / 'tests'}:{os.environ.get('PYTHONPATH', '')}"}
    config = str(REPOSITORY / "launch/cpu_2.yaml")
    try:
        for world, launcher in ((1, []), (2, ["-m", "accelerate.commands.launch", "--config_file", config])):
            done = subprocess.run(
                [sys.executable, *launcher, "tests/dialogue_runs.py", str(tmp_path), str(world), server.url],
                cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    finally:
        server.stop()
    (one,) = (torch.load(tmp_path / "world1-rank0.pt", weights_only=False),)
    two = [torch.load(tmp_path / f"world2-rank{rank}.pt", weights_only=False) for rank in range(2)]
    assert [found["world"] for found in two] == [2, 2]
    assert two[0]["calls"] == two[1]["calls"] == one["calls"]
    half = ROWS // 2
    for step in range(2):
        whole = one["rows"][step * ROWS : (step + 1) * ROWS]
        halves = [found["rows"][step * half : (step + 1) * half] for found in two]
        assert halves[0] + halves[1] == whole
        turns = [max(answers(row["tool_mask"]) for row in rows) for rows in halves]
        assert turns[0] == 0 < 2 <= turns[1], turns


class Two(OneRank):
    """Rank 0 of two; the other's rows of each round are given."""

    def __init__(self, others: list[int]) -> None:
        self.others = others

    def max(self, x: int) -> int:
        return max(x, self.others.pop(0))


@pytest.mark.parametrize("fill", [False, True])
def test_a_rank_without_dialogues_takes_part_until_the_other_has_none(fill):
    calls = []

    def generate(prompts, images, fields, n):
        calls.append(prompts)
        return [[7]] * len(prompts), [[-1.0]] * len(prompts)

    ranks = Two([3, 2, 1, 0])
    rounds = TurnRounds(ranks, on=True, fill=fill)
    found = rounds.play(lambda: rounds.turn(generate, [[1], [2]], None, {}, 1), [[5]], generate)
    assert found == ([[7], [7]], [[-1.0], [-1.0]])
    filler = [5] if fill else None
    assert calls == [[[1], [2]] + [filler] * fill, [filler] * 2 * fill, [filler] * fill]
    assert ranks.others == []


def test_where_generating_is_nobodys_business_but_ones_own_nothing_is_asked():
    rounds = TurnRounds(Two([]), on=False, fill=False)
    assert rounds.play(lambda: "played", [[5]], lambda *_: ([], None)) == "played"
    assert not rounds.playing
