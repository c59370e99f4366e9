"""What a command makes of its runs, as files beside each other."""

import json
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, text: str, values: Any, *pictures: str) -> None:
    """Writes NAME.md and NAME.json; prints the text, and where all is.

    Args:
        folder: of the report, which exists.
        name: of the files.
        text: Markdown.
        values: what JSON holds.
        pictures: names of files that are drawn there already.
    """
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    files = ", ".join([f"{name}.md", f"{name}.json", *pictures])
    print(f"\n{text}\nIn {folder}: {files}")
