"""Every relative link in README and the documentation leads to a file of the repository."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, without addresses on the network."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'<img[^>]*src="([^"]+)"', text)
    return [target.partition("#")[0] for target in targets if not re.match(r"\w+:|#", target)]


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert sum(len(links(page)) for page in pages) > 50
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in links(page)
        if not (page.parent / link).exists()
    ]
    assert not broken
