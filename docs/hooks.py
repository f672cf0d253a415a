"""What mkdocs does beside its own: pages of the site that are files of the repository's root."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Each is written for a reader of the repository, so that its links start there.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add those pages, with links that start in docs/."""
    for name, page in PAGES.items():
        text = Path(config.config_file_path).with_name(name).read_text()
        files.append(File.generated(config, page, content=_moved(text)))
    return files


def _moved(text: str) -> str:
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((\w+\.md)", lambda link: f"]({PAGES.get(link[1], link[1])}", text)
