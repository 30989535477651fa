"""Stand-ins for the commands of a cluster, for tests of plumbing on one machine. Nothing here is Slurm.

`put_slurm` writes a `srun` that starts every task of a step here and now, as many as asked for and each with its rank,
and takes signals as Slurm's does: SIGTERM kills the tasks, SIGUSR1 goes to all their processes. Its `scontrol` knows
the host names of one job and notes jobs that are put back into the queue in `scontrol.requeued`. `put_python` writes a
`python` that records how accelerate is called instead of calling it, and answers /health in place of `entrl serve`;
everything else goes to the real one.
"""

import sys
from pathlib import Path

SRUN = """#!{python}
import contextlib, os, signal, subprocess, sys
options = {{}}
words = sys.argv[1:]
while words and words[0].startswith("--"):
    key, _, value = words.pop(0)[2:].partition("=")
    options[key] = value
hosts = options["nodelist"].split(",")
tasks = int(options["ntasks"])
assert tasks == int(options["nodes"]) == len(hosts), options
children = [
    subprocess.Popen(
        words,
        env=os.environ | {{"SLURM_NODEID": str(i), "SLURM_PROCID": str(i), "HERE": hosts[i]}},
        start_new_session=True,
    )
    for i in range(tasks)
]
def hand_on(number, _):
    for child in children:
        found = subprocess.run(["pgrep", "-s", str(child.pid)], capture_output=True, text=True).stdout
        for process in found.split():
            with contextlib.suppress(ProcessLookupError):  # it ended since it was listed
                os.kill(int(process), signal.SIGKILL if number == signal.SIGTERM else number)
signal.signal(signal.SIGTERM, hand_on)
signal.signal(signal.SIGUSR1, hand_on)
codes = [child.wait() for child in children]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >>"$0.requeued" && exit
[ "$1 $2" = "show hostnames" ] && echo "$3" | tr , '\\n'
"""

PYTHON = """#!{python}
import json, os, sys, time
words = sys.argv[1:]
if words[:2] == ["-m", "accelerate.commands.launch"]:
    names = ("ENTRL_VLLM_API_KEY", "CUDA_VISIBLE_DEVICES", "HERE")
    record = {{"argv": words[2:], "env": {{name: os.environ.get(name) for name in names}}}}
    with open({log!r}, "a") as file:
        file.write(json.dumps(record) + "\\n")
    time.sleep(float(os.environ.get("STAND_IN_TRAINER_SECONDS", "0")))
    sys.exit(int(os.environ.get("STAND_IN_TRAINER_CODE", "0")))
if words[:3] == ["-m", "entrl", "serve"]:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    with open({log!r} + ".servers", "a") as file:
        names = ("ENTRL_VLLM_API_KEY", "CUDA_VISIBLE_DEVICES")
        file.write(json.dumps({{"argv": words[3:], "env": {{name: os.environ.get(name) for name in names}}}}) + "\\n")
    if "STAND_IN_SERVER_DIES" in os.environ:
        sys.exit("out of memory, said the stand-in")
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            if self.path == "/die":
                os._exit(9)
        def log_message(self, *_):
            pass
    value = lambda name: words[words.index(name) + 1]
    HTTPServer((value("--host"), int(value("--port"))), Health).serve_forever()
os.execv({python!r}, [{python!r}, *words])
"""


def put_slurm(folder: Path) -> None:
    _put(folder / "srun", SRUN.format(python=sys.executable))
    _put(folder / "scontrol", SCONTROL)


def put_python(folder: Path, log: Path) -> None:
    _put(folder / "python", PYTHON.format(python=sys.executable, log=str(log)))


def _put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
