"""Run our implementation on a file of reference vectors and say which numbers it reproduces.

Three kinds of file are known, by `meta.method` or `meta.system`: PEAR (rewards, advantages, tag search), Top-H (kept
tokens, entropy and mass under the paper's rule, kept tokens under the published code's) and the entropy mechanism
(Clip-Cov, KL-Cov, plain PPO clip, selections under different splits, entropies, entropy dynamics of a tabular policy,
the law of entropy and accuracy, STEER, GPPO, and Skywork's adaptive entropy against TRL's). A section or function we
do not implement is counted as not covered, never as passed; one the user leaves out by name is listed as excluded.
"""

from entrl_lab.conformance.comparison import CaseResult, Comparison
from entrl_lab.conformance.run import conformance, run_file

__all__ = ["CaseResult", "Comparison", "conformance", "run_file"]
