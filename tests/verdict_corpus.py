r"""The frozen corpus that verdicts are measured on: answer strings written before the verifiers were mended.

    python tests/verdict_corpus.py                      share judged as wanted, per kind
    python tests/verdict_corpus.py --misses integers    the rows of one kind that are judged otherwise
    python tests/verdict_corpus.py --write              freeze the corpus again (only with a reason in the commit)
    python tests/verdict_corpus.py --record after [--cases FOLDER]    rates into data/verdict_rates.json

Rows: tag (kind of string), text, gold, want (1 right, 0 wrong), kind (of verifier: math, choice, exact). The value of
a string is known where it is made, so `want` never comes from a verifier. Rules where readers differ: a percent sign
or a unit may be missing on one side, another unit is another answer; a variable's name may be missing or differ;
3,5 is not 3.5; a list is an answer to a list only; a clock time or a word is itself.
"""

import argparse
import datetime
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import verdict_algebra
import verdict_choices
import verdict_numbers
import verdict_phrasings

DATA = Path(__file__).parent / "data"
CORPUS, RATES = DATA / "verdict_corpus.json", DATA / "verdict_rates.json"
SEED = 13
TIMEOUT_S = 60.0  # generous: a busy machine must not look like a wrong verdict


def generators() -> Iterator[tuple[str, str, Callable[[Random], Iterator[tuple[str, str, int]]]]]:
    """Tag, kind of verifier, and the function that makes the rows."""
    for module in (verdict_numbers, verdict_algebra, verdict_phrasings):
        for make in module.KINDS:
            yield make.__name__, "math", make
    for name in verdict_choices.FORMS:
        yield name, "choice", partial(verdict_choices.forms, name)
    for make in verdict_choices.KINDS:
        yield make.__name__, "choice", make
    yield "exact", "exact", verdict_phrasings.exact


def made() -> list[dict[str, Any]]:
    """Every row once, in the order of the generators; each has its own seed, so one may change alone."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for tag, kind, make in generators():
        for text, gold, want in make(Random(f"{SEED}:{tag}")):
            row = {"tag": tag, "text": text, "gold": gold, "want": want, "kind": kind}
            first = rows.setdefault((text, gold, kind), row)
            if first["want"] != want:
                raise ValueError(f"two opinions about {text!r} against {gold!r}: {first['tag']} and {tag}")
    return list(rows.values())


def frozen() -> list[dict[str, Any]]:
    return json.loads(CORPUS.read_text(encoding="utf-8"))


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def judged(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    from entrl_rewards.accuracy import Accuracy

    texts, golds = [r["text"] for r in rows], [r["gold"] for r in rows]
    return Accuracy(timeout_s=TIMEOUT_S).score(texts, golds, [{"kind": r["kind"]} for r in rows])


def shares(rows: Sequence[dict[str, Any]], scores: Sequence[float | None]) -> dict[str, Any]:
    """Of all rows as wanted; of the right rows paid; of the wrong rows paid; and how many were not verified."""
    paid = [[s for r, s in zip(rows, scores, strict=True) if r["want"] == want] for want in (1, 0)]
    return {
        "rows": len(rows),
        "as_wanted": round(sum(s == r["want"] for r, s in zip(rows, scores, strict=True)) / len(rows), 4),
        "right_paid": round(sum(s == 1 for s in paid[0]) / len(paid[0]), 4) if paid[0] else None,
        "wrong_paid": round(sum(s == 1 for s in paid[1]) / len(paid[1]), 4) if paid[1] else None,
        "unverified": sum(s is None for s in scores),
    }


def table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`overall`, then each tag."""
    scores = judged(rows)
    found = {"overall": shares(rows, scores)}
    for tag in dict.fromkeys(r["tag"] for r in rows):
        chosen = [i for i, r in enumerate(rows) if r["tag"] == tag]
        found[tag] = shares([rows[i] for i in chosen], [scores[i] for i in chosen])
    return found


def rate(kind: str | None = None) -> dict[str, dict[str, Any]]:
    """Shares judged as wanted over the frozen corpus, or over one tag or one kind of verifier."""
    return table([r for r in frozen() if kind in (None, r["tag"], r["kind"])])


def cases(folder: Path) -> dict[str, Any]:
    """The same shares over answers.json, choices.json and identities.json of a folder."""
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("answers", "choices", "identities")}
    rows = {"answers": read["answers"], "choices": read["choices"]}
    for form in ("{}", r"\boxed{{{}}}"):
        name = "identities, raw" if form == "{}" else "identities, boxed"
        rows[name] = [{"text": form.format(s), "gold": s, "want": 1, "kind": "math"} for s in read["identities"]]
    return {name: shares(part, judged(part)) for name, part in rows.items()}


def record(name: str, folder: Path | None) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=DATA.parent)
    found = rate()
    entry: dict[str, Any] = {"commit": head.stdout.strip(), "date": datetime.date.today().isoformat()}
    entry |= {"overall": found.pop("overall"), "kinds": found}
    if folder is not None:
        entry["cases"] = cases(folder)
    rates = json.loads(RATES.read_text()) if RATES.exists() else {}
    RATES.write_text(json.dumps(rates | {name: entry}, indent=1) + "\n")


def show(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'':24}{'rows':>6}{'as wanted':>11}{'right paid':>12}{'wrong paid':>12}{'unverified':>12}")
    for tag, s in found.items():
        right, wrong = ("" if s[k] is None else f"{s[k]:.2f}" for k in ("right_paid", "wrong_paid"))
        print(f"{tag:24}{s['rows']:>6}{s['as_wanted']:>11.3f}{right:>12}{wrong:>12}{s['unverified']:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="freeze what the generators make")
    parser.add_argument("--misses", metavar="KIND", help="show the rows of this kind that are judged otherwise")
    parser.add_argument("--record", metavar="NAME", help="write the rates under this name")
    parser.add_argument("--cases", type=Path, help="folder with answers.json, choices.json, identities.json")
    args = parser.parse_args()
    if args.write:
        CORPUS.write_text(as_json(made()), encoding="utf-8")
    elif args.record:
        record(args.record, args.cases)
    elif args.misses:
        rows = [r for r in frozen() if args.misses in (r["tag"], r["kind"])]
        for row, score in zip(rows, judged(rows), strict=True):
            if score != row["want"]:
                print(score, json.dumps(row, ensure_ascii=False))
    else:
        show(rate() | (cases(args.cases) if args.cases else {}))


if __name__ == "__main__":
    main()
