"""Which scorers of reasoning-gym run what a model wrote, or what a row says, as code.

Source:  reasoning-gym 0.1.25, `score_answer` of every dataset
"""

EVALUATES = {  # dataset -> what its scorer evaluates
    "spiral_matrix": "the answer, by eval",
    "string_insertion": "the answer, by eval",
    "binary_matrix": "the answer, by eval",
    "n_queens": "the answer, by eval",
    "countdown": "the answer, by sympy's parse_expr",
    "puzzle24": "the answer, by sympy's parse_expr",
    "simple_integration": "the answer, by sympy's parse_expr",
    "intermediate_integration": "the answer, by sympy's parse_expr",
    "polynomial_multiplication": "the answer, by sympy's parse_expr",
    "number_sorting": "the row's own answer, by eval",
    "bitwise_arithmetic": "the row's own problem, by eval",
    "composite": "whatever its parts evaluate",
}


def refuse_evaluating(dataset: str) -> None:
    """ValueError for a dataset whose scorer would run text as code in this machine's processes."""
    if dataset in EVALUATES:
        raise ValueError(
            f"reasoning-gym {dataset!r} cannot be used: its scorer evaluates {EVALUATES[dataset]}, so what a model "
            "writes would run as code on this machine; train on another dataset (or, for composite, on its parts)"
        )
