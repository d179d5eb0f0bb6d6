"""Every relative link in README and the documentation leads to a file of the repository."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

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


def test_the_site_has_no_links_to_files_that_it_does_not_hold() -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "site_links.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="studies/recipes.md"))
    text = "[card](../../zoo/README.md), [numbers](../numbers.md#x), [paper](https://arxiv.org/abs/1), ![plot](../../a.png)"
    assert hook(text, page=page) == text.replace("[card](../../zoo/README.md)", "card")
