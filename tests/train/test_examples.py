"""The scripts of docs/examples: each starts as it is documented."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
LOAD = """
import runpy, sys
from pathlib import Path
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(sys.argv[2])]
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    before = list(sys.path)
    # As `python PATH` does; of what the script imports only its own path may find it.
    for name in [m for m in sys.modules if m.partition(".")[0] in ("models", "train")]:
        del sys.modules[name]
    runpy.run_path(str(path))
    print(path.stem)
    sys.path[:] = before
"""


def test_every_example_finds_its_modules_from_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(EXAMPLES), str(EXAMPLES.parents[1])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert set(result.stdout.split()) >= scripts
