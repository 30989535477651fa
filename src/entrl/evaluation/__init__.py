"""What a policy can do: how its answers are asked for and scored, and the numbers of an evaluation.

    answers     an evaluation on a task             dialogues   the same for games, in dialogues with an environment
    writing     who writes answers: the interface   generation  by transformers     engine      by vLLM
    records     a record per problem, kept          memory      batches that fit
    scoring     what was written, as rewards get it scores      accuracies, pass@k, lengths
    result      the head of the JSON                asked       tags and template of the run a model comes from

How the numbers are called and shown: `entrl.report.metrics`.
"""
