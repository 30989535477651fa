"""`entrl offline FILE.yaml [key=value...]`."""

import argparse


def run_offline(options: argparse.Namespace) -> int:
    """What the command does with its parsed arguments."""
    from entrl.settings.overrides import split_overrides
    from entrl.teach.offline.spec import load_offline

    overrides, how = split_overrides(options.overrides)
    if how.get("resume"):
        raise ValueError("an offline run is not resumed: one that was interrupted begins again by itself; drop resume")
    spec = load_offline(options.recipe, overrides)
    from entrl.teach.offline.run import offline

    offline(spec, overwrite=how.get("overwrite", False))
    return 0
