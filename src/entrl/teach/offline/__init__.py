"""Learning to ask without asking: candidate questions for dialogue prefixes, each worth its exact expected gain.

    entrl offline FILE.yaml

`candidates` makes the groups, `pairs` the preferences, `rollout` hands groups to the GRPO trainer, `measure` looks at
which question a model asks, `spec` reads the file, `run` trains and writes the folder.
"""

from entrl.teach.offline.candidates import (
    Candidate,
    CandidateSpec,
    Group,
    PrefixSpec,
    make_groups,
    read_groups,
    write_groups,
)
from entrl.teach.offline.pairs import PairSpec, make_pairs, write_pairs

__all__ = [
    "Candidate",
    "CandidateSpec",
    "Group",
    "PairSpec",
    "PrefixSpec",
    "make_groups",
    "make_pairs",
    "read_groups",
    "write_groups",
    "write_pairs",
]
