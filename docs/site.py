"""What `mkdocs build` does beside its configuration: pages and numbers that lie outside of `docs/` are on the site too.

READMEs of folders stay where GitHub shows them and are pages here; result files are files here. A link is written as it
works on GitHub, `../recipes/README.md`, and put right for the site, where `docs/` is the root.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    *(
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "rewards/README.md",
        "launch/README.md",
        "benchmarks/*.md",
        "benchmarks/*.json*",
    ),
    *(
        "recipes/README.md",
        "recipes/*/README.md",
        "recipes/*/*/README.md",
        "recipes/*/*results.md",
        "recipes/*/*.json",
        "recipes/*/*.svg",
    ),
    "tests/data/verdict_rates.json",
)
ORIGIN = re.compile(r"\]\((?!\w+:|#)([^)\s]+)")  # what a link names, where it is no address and no heading


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    inside = page.file.generated_by is None  # of docs/
    depth = page.file.src_uri.count("/")

    def site(match: re.Match[str]) -> str:
        link = match[1]
        if inside and link.startswith("../" * (depth + 1)):  # out of docs/: one step fewer, which is the site's root
            return f"]({link[3:]}"
        return f"]({link if inside else link.replace('docs/', '', 1)}"

    return ORIGIN.sub(site, markdown)
