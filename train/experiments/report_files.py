"""Writes a report as Markdown and JSON."""

from pathlib import Path
from typing import Any

from train import files, strict_json


def write(folder: Path, name: str, text: str, values: Any, *pictures: str) -> None:
    """Writes NAME.md and NAME.json, and prints the text and the paths.

    Args:
        folder: existing folder of the report.
        name: name of the files.
        text: the report in Markdown.
        values: anything JSON can hold; NaN is written as null.
        pictures: names of the pictures already in the folder.
    """
    files.write(folder / f"{name}.md", text.encode())
    files.write(folder / f"{name}.json", strict_json.encode(values))
    names = ", ".join([f"{name}.md", f"{name}.json", *pictures])
    print(f"\n{text}\nIn {folder}: {names}")
