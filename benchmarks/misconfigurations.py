"""What `entrl plan` and `entrl train` say of wrong recipes (`misconfiguration_cases.py`); a JSON of verdicts.

    python benchmarks/misconfigurations.py --out FILE.json          # goes on where it was stopped
    python benchmarks/misconfigurations.py --out FILE.json --table

Verdicts: `refused by name` and `warned by name` (a line of plan holds the key or the file, and what to do), `refused,
unclear` (it does not), `refused by train alone`, `silent` (both say nothing), `traceback` and `hang` (of either). Of
controls, which are right as they are: `quiet`, or `false alarm`. "What to do" is looked for by words (`MOVES`), so a
message without advice counts as unclear; whether advice is good is for readers to judge.

Each case is a fork of this process, which has the libraries imported, in a folder of its own; two steps of a random
model of two layers. A case that takes longer than `LIMIT_S` seconds hangs.
"""

import argparse
import contextlib
import copy
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from misconfiguration_cases import BASE, CONTROLS, GROUPS  # noqa: E402
from tiny_model import saved_model  # noqa: E402

from entrl.cli.main import main as entrl  # noqa: E402
from entrl.settings.overrides import apply_override  # noqa: E402
from entrl.settings.provenance import git_state  # noqa: E402
from entrl.settings.yaml import dump_yaml  # noqa: E402

LIMIT_S = 90
NAMED = ("refused by name", "warned by name")
MOVES = re.compile(
    r"(?i)\b(set|write|use|take|leave|remove|give|name|make|choose|rename|raise|lower|add|install|pass|correct|keep|drop"
    r"|say|start|mend|train|point|read|run|check|unset|put|move|save|list|need[s]?|define|return|look|must|between"
    r"|at least|did you mean|there are|valid keys|it takes|known|wait|call)\b"
)


# --- model folders that are spoilt ---------------------------------------------------------------------------------


def _edit(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def _retokenized(folder: Path, change: Callable[[Any], object]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    change(tokenizer)
    tokenizer.save_pretrained(folder)


def _without(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def _no_end(tokenizer: Any) -> None:
    tokenizer.eos_token = None


def _encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    _without(folder, "config.json", "*.safetensors", "generation_config.json")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config: dict[str, Any] = json.loads(BertConfig(vocab_size=size, **shape).to_json_string(use_diff=False))
    config |= {"architectures": ["T5Model"], "model_type": "t5"}  # a kind that no causal model is made of
    BertModel(BertConfig(vocab_size=size, **shape)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def _lost_base(folder: Path) -> None:
    _without(folder, "config.json", "*.safetensors", "generation_config.json")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "base_model_name_or_path": "/nowhere/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _cut(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _template(text: str | None) -> Callable[[Path], None]:
    return lambda folder: _retokenized(folder, lambda tokenizer: setattr(tokenizer, "chat_template", text))


SPOILT: dict[str, Callable[[Path], Any]] = {
    "no_config": lambda folder: (folder / "config.json").unlink(),
    "no_tokenizer": lambda folder: _without(folder, "tokenizer*", "special_tokens*", "chat_template*"),
    "no_weights": lambda folder: _without(folder, "*.safetensors"),
    "cut_weights": _cut,
    "empty_config": lambda folder: (folder / "config.json").write_text(""),
    "no_type": lambda folder: _edit(folder, "config.json", lambda c: (c.pop("model_type"), c.pop("architectures"))),
    "no_end": lambda folder: (
        _retokenized(folder, _no_end),
        _edit(folder, "config.json", lambda c: c.update(eos_token_id=None)),
        (folder / "generation_config.json").unlink(missing_ok=True),
    ),
    "large_tokenizer": lambda folder: _retokenized(folder, lambda t: t.add_tokens([f"<extra_{i}>" for i in range(64)])),
    "broken_template": _template("{% for message in messages %}{{ message['content'] }}"),
    "endless_template": _template("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"),
    "no_template": _template(None),
    "encoder": _encoder,
    "lost_base": _lost_base,
}


# --- one case ------------------------------------------------------------------------------------------------------


def lay_out(case: tuple[Any, ...], folder: Path, model: Path) -> list[str]:
    """Write the case's files; the words of the command after its name."""
    _, _, changes, around = (*case, {})[:4]
    content = copy.deepcopy(BASE)
    for change in changes:
        if change.startswith("-"):
            group, _, key = change[1:].rpartition(".")
            content[group].pop(key)
        else:
            apply_override(content, change)
    shutil.copytree(model, folder / "model")
    if "model" in around:
        SPOILT[around["model"]](folder / "model")
    for name, text in around.get("files", {}).items():
        (folder / name).write_text(text)
    (folder / "wrong.yaml").write_text(around.get("text") if "text" in around else dump_yaml(content))
    return ["wrong.yaml", *around.get("words", [])]


def forked(work: Callable[[], int], out: Path) -> tuple[int | None, str, float]:
    """(exit code; 77 for a traceback, None for a hang), what was printed, seconds."""
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 77
        try:
            os.setsid()
            sink = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (sink, 1), (sink, 2)):
                os.dup2(descriptor, target)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, m, closefd=False) for i, m in enumerate("rww"))
            code = work()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 78  # of the recipe's own code
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    while time.monotonic() < start + LIMIT_S:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, out.read_text(errors="replace"), time.monotonic() - start
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, out.read_text(errors="replace"), time.monotonic() - start


def run_case(group: str, case: tuple[Any, ...], model: Path) -> dict[str, Any]:
    what, pattern, _, around = (*case, {})[:4]
    folder = Path(tempfile.mkdtemp(prefix="misconfig-"))
    try:
        words = lay_out(case, folder, model)

        def command(name: str) -> Callable[[], int]:
            def work() -> int:
                os.chdir(folder)
                os.environ.update(around.get("env", {}))
                return entrl([name, *words])

            return work

        if around.get("before"):
            forked(command("train"), folder / "out")
        code, text, seconds = forked(command("plan"), folder / "out")
        trained, said, more = (code, "", 0.0)
        if around.get("train", True) and code is not None:
            trained, said, more = forked(command("train"), folder / "out")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = [line for line in text.splitlines() if line.startswith(("problem:", "warning:", "not checked:"))]
    lines = [anywhere(line, folder) for line in lines]
    verdict, line = judged(pattern, code, lines, trained, control=group == "controls")
    end = said.strip().splitlines()[-6:] if trained not in (0, code) or verdict == "traceback" else []
    return {
        "group": group,
        "what": what,
        "verdict": verdict,
        "plan": code,
        "train": trained,
        "line": line if line is not None else " | ".join(lines)[:400],
        "train_said": anywhere(" | ".join(end), folder)[:400],
        "seconds": round(seconds + more, 1),
    }


def anywhere(text: str, folder: Path) -> str:
    """Without the places of this machine."""
    return text.replace(str(folder), "FOLDER").replace(f"{ROOT}/", "").replace(sys.prefix, "PYTHON")


def judged(
    pattern: str, code: int | None, lines: list[str], trained: int | None, *, control: bool
) -> tuple[str, str | None]:
    """(verdict, the line that names it)"""
    if None in (code, trained):
        return "hang", None
    if code not in (0, 1, 2) or trained not in (0, 1, 2):
        return "traceback", None
    if control:
        return ("quiet", None) if code == trained == 0 and not lines else ("false alarm", None)
    named = [line for line in lines if re.search(pattern, line) and MOVES.search(line)]
    for kinds, verdict in ((("problem:", "not checked:"), "refused by name"), (("warning:",), "warned by name")):
        if found := next((line for line in named if line.startswith(kinds)), None):
            return verdict, found
    if code:
        return "refused, unclear", None
    return ("refused by train alone" if trained else "silent"), None


def table(results: dict[str, dict[str, Any]]) -> str:
    """Groups by verdicts, in Markdown."""
    found = [r for r in results.values() if r["group"] != "controls"]
    verdicts = [*NAMED, "refused, unclear", "refused by train alone", "silent", "hang", "traceback"]
    lines = [f"| group | cases | {' | '.join(verdicts)} |", "|---" * (len(verdicts) + 2) + "|"]
    for group in [*GROUPS, "all"]:
        count = Counter(r["verdict"] for r in found if group in (r["group"], "all"))
        lines.append(f"| {group} | {count.total()} | {' | '.join(str(count[v]) for v in verdicts)} |")
    named = sum(r["verdict"] in NAMED for r in found)
    alarms = [r["what"] for r in results.values() if r["verdict"] == "false alarm"]
    lines += ["", f"{named} of {len(found)} named, {named / max(len(found), 1):.1%}; false alarms: {alarms or 'none'}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print what is in the file and run nothing")
    parser.add_argument("--only", help="cases whose name holds this text; run again if they were run")
    parser.add_argument("--again", action="store_true", help="run those again that are not named")
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.is_file() else {"results": {}}
    results: dict[str, dict[str, Any]] = content["results"]
    if not options.table:
        commit = git_state(ROOT)  # of each result: a file that is gone on with may hold those of an earlier one
        with tempfile.TemporaryDirectory(prefix="misconfig-model-") as model:
            saved_model(Path(model))
            for module in ("plan", "train"):  # before the forks
                importlib.import_module(f"entrl.runs.{module}")

            for group, cases in {"controls": CONTROLS, **GROUPS}.items():
                for case in cases:
                    name = f"{group}: {case[0]}"
                    known = name in results and not (
                        options.again and results[name]["verdict"] not in (*NAMED, "quiet")
                    )
                    if (options.only and options.only not in name) or (known and not options.only):
                        continue
                    results[name] = run_case(group, case, Path(model)) | {"commit": commit}
                    print(f"{results[name]['verdict']:<24} {name}  {results[name]['line'][:150]}", flush=True)
                    options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
