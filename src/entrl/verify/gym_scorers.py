"""Every dataset of reasoning-gym, and whether its scorer lets a model's text, or a row's entry, do anything.

    INERT      its own scorer: it compares, splits, matches, or reads JSON and numbers; nothing of the text is evaluated
    GRADERS    ours, in `entrl.verify.gym_graders`, because its own evaluates the answer (eval, sympy's parse_expr) or
               the entry (eval), or pays for anything
    REFUSED    neither

A dataset that is in none of them came with another version of reasoning-gym and is refused until somebody has read its
scorer. tests/test_verify_gym.py compares this table with the installed version, and looks through the source of every
inert scorer, and of what it calls, for anything that evaluates, opens, starts or keeps.

Source:  reasoning-gym 0.1.25, `score_answer` of every dataset
"""

import re

from entrl.verify.gym_graders import GRADERS

INERT = frozenset(
    {
        "ab", "acre", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion",
        "basic_arithmetic", "bf", "binary_alternation", "boxnet", "caesar_cipher", "calendar_arithmetic",
        "chain_sum", "circuit_logic", "codeio", "color_cube_rotation", "count_bits", "count_primes",
        "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum", "dice", "emoji_mystery",
        "family_relationships", "figlet_font", "fraction_simplification", "futoshiki", "game_of_life", "gcd",
        "graph_color", "group_anagrams", "gsm_symbolic", "isomorphic_strings", "jugs", "kakurasu",
        "knight_swap", "knights_knaves", "largest_island", "lcm", "leg_counting", "letter_counting",
        "letter_jumble", "list_functions", "mahjong_puzzle", "manipulate_matrix", "maze", "mini_sudoku",
        "modulo_grid", "needle_haystack", "number_filtering", "number_format", "number_sequence",
        "palindrome_generation", "palindrome_partitioning", "path_star", "polynomial_equations", "pool_matrix",
        "power_function", "prime_factorization", "products", "propositional_logic", "quantum_lock",
        "ransom_note", "rearc", "rectangle_count", "rotate_matrix", "rotten_oranges", "rubiks_cube",
        "rush_hour", "self_reference", "sentence_reordering", "shortest_path", "simple_equations",
        "simple_geometry", "sokoban", "spell_backward", "string_manipulation", "string_splitting",
        "string_synthesis", "sudoku", "survo", "syllogism", "time_intervals", "tower_of_hanoi", "tsumego",
        "word_ladder", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
    }
)  # fmt: skip
REFUSED = {"composite": "it hands the answer to the scorers of its parts; name the parts as tasks of their own"}
MAX_FORMULA = 500  # characters of a conclusion; its scorer's time grows with the square of a row of negations
MAX_TURNS = 10_000  # of a cube: its scorer writes `R99999999` out before it turns anything


def check_dataset(name: str) -> None:
    """ValueError for a dataset whose scorer could run text as code, or that nobody has looked at."""
    if name in REFUSED:
        raise ValueError(f"reasoning-gym {name!r} cannot be used: {REFUSED[name]}")
    if name not in INERT and name not in GRADERS:
        raise ValueError(
            f"reasoning-gym {name!r} is not classified: nobody has looked whether its scorer runs what a model writes. "
            "Take another dataset, or read its score_answer and enter it in entrl/verify/gym_scorers.py"
        )


def hopeless(name: str, text: str) -> bool:
    """An answer that its inert scorer would work on for ever, and that cannot be right."""
    if name == "propositional_logic":
        return len(text) > MAX_FORMULA
    if name != "rubiks_cube":
        return False
    counts = re.findall(r"\d+", text)
    return any(len(count) > 5 for count in counts) or sum(map(int, counts)) > MAX_TURNS
