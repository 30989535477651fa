"""What a policy can do: how its answers are asked for and scored, and the numbers of an evaluation.

    answers     an evaluation on a task         dialogues   the same for games, in dialogues with an environment
    writing     what a writer of answers is       generation  one: transformers
    scoring     what it wrote, as rewards get it
    scores      accuracies, pass@k, lengths     asked       tags and template of the run a model comes from

How the numbers are called and shown: `entrl.report.metrics`.
"""
