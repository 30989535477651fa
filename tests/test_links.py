"""Relative links in the pages people read lead to files and headings that are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def pages() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return listed or sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Of its headings, as the site makes them; GitHub keeps several dashes where the site has one."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.M):
        named = re.search(r"\{#([\w-]+)\}", heading)
        found.add(named[1] if named else slug(heading))
    return found


def slug(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\- ]", "", heading.lower()).strip())


@pytest.mark.parametrize("page", pages())
def test_relative_links(page: str):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    wrong = []
    for target in (a or b for a, b in LINK.findall(text)):
        path, _, heading = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (heading and file.suffix == ".md" and slug(heading) not in anchors(file)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize(("link", "code"), [("here.md", 0), ("gone.md", 1)])
def test_the_suite_of_docs_fails_for_a_dead_link(tmp_path: Path, link: str, code: int):
    """mkdocs counts no warning that its options hide."""
    options = re.search(r"-m mkdocs (build.*?) --site-dir", (ROOT / "launch" / "test.sh").read_text())
    assert options
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\nTo [another]({link}).\n")
    (tmp_path / "docs" / "here.md").write_text("# Another\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nplugins: []\n")
    command = [sys.executable, "-m", "mkdocs", *options[1].split(), "--site-dir", str(tmp_path / "site")]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == code
