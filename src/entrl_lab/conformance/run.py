"""Vector files in, a table or JSON and an exit code out."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrl_lab.conformance import ares, ares_losses, information_gain
from entrl_lab.conformance.adaptive_entropy import adaptive_entropy_case
from entrl_lab.conformance.comparison import Case, CaseResult, Comparison, Runner, Status
from entrl_lab.conformance.curriculum import allocation_case, difficulty_case, profile_case, stop_case
from entrl_lab.conformance.entropy_mechanism import entropy_case, loss_case, partition_case
from entrl_lab.conformance.law import law_case
from entrl_lab.conformance.neighbours import gppo_case, steer_case
from entrl_lab.conformance.pear import group_case, locate_case, pear_case
from entrl_lab.conformance.theory import theory_case
from entrl_lab.conformance.top_h import top_h_case


@dataclass(frozen=True)
class Successive:
    """A section whose entries continue one another: all of them are one case, `{"steps": entries}`."""

    runner: Runner


# one way to run every case, or one for each `function` a case may name
Section = Runner | Mapping[str, Runner] | Successive

# first word of meta.method -> section -> how to run its cases
SECTIONS: dict[str, dict[str, Section]] = {
    "PEAR": {"cases": pear_case, "locate_close": locate_case, "groups": group_case},
    "Clip-Cov": {
        "cases": dict.fromkeys(
            ("verl.clip_cov", "verl.kl_cov", "prime.clip_cov", "prime.kl_cov", "prime.ppo_clip"), loss_case
        ),
        "partitions": partition_case,
        "entropy": entropy_case,
        "theory": theory_case,
        "law": law_case,
        "neighbours": {
            "steer.compute_token_weights": steer_case,
            "klear.compute_gppo_loss": gppo_case,
            "skywork.EntController": adaptive_entropy_case,
        },
    },
    "ARES": {
        "reward": ares.reward_case,
        "primitives/huber": ares.huber_case,
        "primitives/sigmoid": ares.sigmoid_case,
        "primitives/margin": ares.margin_case,
        "primitives/normalize_token": ares.token_case,
        "reward_without_bucket_fields": ares.early_reward_case,
        "entropy_topk": ares.windows_case,
        "difficulty_update": ares.difficulty_case,
        "ema_threshold": Successive(ares.threshold_case),
        "lambda_update_inactive": ares.lambda_case,
        "kl_beta": ares_losses.kl_beta_case,
        "kl_loss": ares_losses.kl_loss_case,
        "policy_loss": ares_losses.policy_loss_case,
        "grpo_advantage": ares_losses.advantage_case,
        "group_filter": ares_losses.filter_case,
        "paper_mode/windows": ares.paper_windows_case,
        "paper_mode/reward": ares.paper_reward_case,
        "paper_mode/lambda": ares.paper_lambda_case,
        "paper_mode/kappa": ares_losses.paper_kappa_case,
        "paper_mode/token_beta": ares_losses.paper_beta_case,
        "paper_mode/adacs": ares.target_length_case,
        "paper_mode/buckets": ares.bucket_case,
    },
}

# the same for files that name a `meta.system` in place of a method
SYSTEMS: dict[str, dict[str, Section]] = {
    "Top-H": {"cases": top_h_case},
    "DART-Math": {"stop_rule": stop_case, "prop2diff_allocation": allocation_case},
    "STAT": {"difficulty_filter": difficulty_case, "profile": profile_case},
}

# the same for files that have a `topic`, and a `kind` in each case, in place of meta
TOPICS: dict[str, dict[str, Section]] = {"information_gain": {"cases": information_gain.KINDS}}
EIGHT_DECIMALS = 1e-8  # how those files round, and so their tolerance where they state none


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Section]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and "topic" in content and "meta" not in content:
        content = _with_meta(content)
    meta = content.get("meta", {}) if isinstance(content, dict) else {}
    files = {"topic": TOPICS, "method": SECTIONS, "system": SYSTEMS}
    key = next((key for key in files if meta.get(key)), "method")
    name = str(meta.get(key, ""))
    sections = files[key].get(name.split(" ")[0])
    if sections is None:
        said = f"topic {name!r}" if key == "topic" else f"meta.{key} {name!r}"
        raise ValueError(
            f"{path} has {said}, which no check here knows; known methods start with {' or '.join(SECTIONS)}, known "
            f"systems with {' or '.join(SYSTEMS)}, known topics are {' or '.join(TOPICS)}"
        )
    return content, sections


def _with_meta(content: dict[str, Any]) -> dict[str, Any]:
    """A file with a topic, in the form of the others: what is said of all cases under meta, a kind is a function."""
    tolerance = content.get("tolerance", {})
    meta = {
        "topic": content["topic"],
        "tolerance": {"rtol": tolerance.get("rel", 0.0), "atol": tolerance.get("abs", 0.0)},
    }
    return {"meta": meta, "cases": [{"function": case.get("kind"), **case} for case in content.get("cases", [])]}


def _tolerance(meta: dict[str, Any], section: str, case: Case) -> tuple[float, float]:
    """Relative and absolute: one number, `rtol` and `atol`, or a number for each section with a `default`. A case of a
    file with a topic may have its own `tol`, which replaces the file's: what it does not name is 0.
    """
    if "topic" in meta and "tol" in case:
        return float(case["tol"].get("rel", 0.0)), float(case["tol"].get("abs", 0.0))
    tolerance = meta["tolerance"] if "system" not in meta else meta.get("tolerance", EIGHT_DECIMALS)
    if isinstance(tolerance, dict) and "rtol" in tolerance:
        return float(tolerance["rtol"]), float(tolerance["atol"])
    if isinstance(tolerance, dict):
        tolerance = tolerance.get(section.split("/")[0], tolerance["default"])
    return 0.0, float(tolerance)


def names_case(name: str, case_id: str, function: str) -> bool:
    """Whether `name` means this case: its id, its function, a leading part of either up to a `/` or `.`, or a glob.

    Case does not matter: `SENT`, `sent.*`, `pub/sent` and `pub/sent/low_entropy_kl_cov_v2` all mean the same case.
    """
    name = name.lower()
    return any(
        known and (fnmatchcase(known, name) or known.startswith((f"{name}/", f"{name}.")))
        for known in (case_id.lower(), function.lower())
    )


def _run_case(case: Case, case_id: str, section: Section | None, tolerance: tuple[float, float]) -> CaseResult:
    if section is None:
        return CaseResult(id=case_id, status="not_covered", note="no implementation for this section")
    if isinstance(section, Successive):
        section = section.runner
    runner = section.get(str(case.get("function"))) if isinstance(section, Mapping) else section
    if runner is None:
        return CaseResult(id=case_id, status="not_covered", note=f"no implementation of {case.get('function')}")
    check = Comparison(rtol=tolerance[0], atol=tolerance[1])
    try:
        note = runner(case, check)
    except KeyError as error:
        return CaseResult(id=case_id, status="failed", note=f"the case has no key {error}")
    return check.result(case_id, note)


def _cases(content: dict[str, Any], sections: dict[str, Section]) -> Iterator[tuple[str, str, Case]]:
    """(section, id, case) of every case, in the file's order; a folder's sections are named `folder/section`."""
    for top, entries in content.items():
        for section, cases in _lists(top, entries) if top != "meta" else ():
            if isinstance(sections.get(section), Successive):
                cases = [{"steps": cases}]
            for i, case in enumerate(cases):
                yield section, str(case.get("id") or f"{section}/{case.get('name', i)}"), case


def _lists(section: str, entries: Any) -> Iterator[tuple[str, list[Case]]]:
    """A list holds cases, and a list inside it is one case of several steps. A dict is one case if it has `expect`,
    shares what it holds with its `cases` if it has those, and is a folder of sections otherwise.
    """
    if isinstance(entries, list):
        yield section, [{"steps": case} if isinstance(case, list) else case for case in entries]
    elif "expect" in entries:
        yield section, [entries]
    elif "cases" in entries:
        shared = {name: value for name, value in entries.items() if name != "cases"}
        yield section, [shared | case for case in entries["cases"]]
    else:
        for name, inner in entries.items():
            yield from _lists(f"{section}/{name}", inner)


def run_file(path: str | Path, exclude: Sequence[str] = ()) -> list[CaseResult]:
    """One result per case of the file, in its order; ValueError when the file is of no known kind.

    exclude: names as `names_case` reads them; such a case is not run and its result says which name left it out.
    """
    content, sections = _read(Path(path))
    results = []
    for section, case_id, case in _cases(content, sections):
        names = [name for name in exclude if names_case(name, case_id, str(case.get("function", "")))]
        if names:
            result = CaseResult(id=case_id, status="excluded", note=f"left out by name: {', '.join(names)}")
        else:
            result = _run_case(case, case_id, sections.get(section), _tolerance(content["meta"], section, case))
        results.append(result)
    if not results:
        raise ValueError(f"{path} holds no cases; an empty file would pass whatever the code does")
    return results


def _check_names(paths: Sequence[str | Path], exclude: Sequence[str]) -> None:
    """A misspelt name leaves nothing out; better said before minutes of cases than found in a failure after them."""
    known = [
        (case_id, str(case.get("function", ""))) for path in paths for _, case_id, case in _cases(*_read(Path(path)))
    ]
    for name in exclude:
        matched = [one for one in known if names_case(name, *one)]
        if not matched:
            raise ValueError(
                f"--exclude {name} names no case of these files; give a case id, a function (or a leading part of "
                "one), or a glob, as the table prints them"
            )


def conformance(
    paths: Sequence[str | Path], strict: bool = False, as_json: bool = False, exclude: Sequence[str] = ()
) -> int:
    """Print a table (or JSON with the computed values). 0 = all covered cases agree, 1 = some do not, 2 = no answer.

    strict: a case that is not covered counts as one that fails; one named in `exclude` does not.
    """
    try:
        _check_names(paths, exclude)
        with redirect_stdout(sys.stderr):  # what libraries print on import and in training is no part of the answer
            results = {str(path): run_file(path, exclude) for path in paths}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not results:
        print("error: no vector file given; name at least one", file=sys.stderr)
        return 2
    statuses = [r.status for file in results.values() for r in file]
    counts = {status: statuses.count(status) for status in get_args(Status)}
    if counts["excluded"] == len(statuses):
        print("error: every case is excluded by name, so nothing was looked at; exclude fewer", file=sys.stderr)
        return 2
    if as_json:
        files = {path: [asdict(r) for r in file] for path, file in results.items()}
        print(json.dumps({"counts": counts, "files": files}))
    else:
        _print_table(results, counts)
    return int(counts["failed"] > 0 or (strict and counts["not_covered"] > 0))


def _print_table(results: dict[str, list[CaseResult]], counts: dict[str, int]) -> None:
    style = {"passed": "green", "failed": "bold red", "not_covered": "yellow", "excluded": "dim"}
    console = Console()
    for path, file in results.items():
        table = Table("case", "status", "largest error", "note", title=path)
        for r in file:
            error = "" if r.max_error is None else f"{r.max_error:.1e}"
            table.add_row(escape(r.id), f"[{style[r.status]}]{r.status.replace('_', ' ')}", error, escape(r.note))
        console.print(table)
    told = {status: n for status, n in counts.items() if n or status != "excluded"}
    console.print(", ".join(f"{n} {status.replace('_', ' ')}" for status, n in told.items()))
