"""What a command makes of its runs, as files beside each other."""

from pathlib import Path
from typing import Any

from train import files, strict_json


def write(folder: Path, name: str, text: str, values: Any, *pictures: str) -> None:
    """Writes NAME.md and NAME.json; prints the text, and where all is.

    Args:
        folder: of the report, which exists.
        name: of the files.
        text: Markdown.
        values: anything JSON can hold; NaN is written as null.
        pictures: names of files that are drawn there already.
    """
    files.write(folder / f"{name}.md", text.encode())
    files.write(folder / f"{name}.json", strict_json.encode(values))
    names = ", ".join([f"{name}.md", f"{name}.json", *pictures])
    print(f"\n{text}\nIn {folder}: {names}")
