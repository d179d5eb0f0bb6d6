"""Hook of the site's generator: links to files outside docs/, which the site does not hold, become plain text."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """The text of a page without its links to files that are not on the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        is_outside = "://" not in target and posixpath.normpath(posixpath.join(folder, target)).startswith("..")
        return text if is_outside else link[0]

    return LINK.sub(shown, markdown)
