"""What a run is besides training: its recipe and plan, its folder, its lock, its end.

    recipe       YAML as typed options          specs        the groups a recipe is made of
    removed_keys keys that are gone             plan         `entrl plan`, the checks before training
    train        one training run               serve        a vLLM server for a recipe
    folder       what lies where, manifest      ours         what in a folder may be overwritten
    contents     files a run reads, hashed      lock         one writer for a folder
    checkpoints  where a run can go on          longer       training on after the last step
    log          metrics, completions, progress log_lengths  logs cut back to a checkpoint
    law_watch    the law while a run trains     ending       SIGTERM and Ctrl-C
    together     ranks that fail together       writing      errors of a disk in words
    wording      text of others in a terminal

Whatever trains or serves lies in other rooms; what puts it together for one command lies here.
"""
