"""Progress bars: few updates in files, many on a terminal."""

import io

import pytest

from train import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stderr", "least", "most"), [(io.StringIO(), 1, 4), (Terminal(), 50, 1000)]
)
def test_a_bar_in_a_file_is_seldom_updated(monkeypatch, stderr, least, most):
    monkeypatch.setattr("sys.stderr", stderr)
    with progress.bar(total=100, mininterval=0) as bar:
        for number in range(100):
            bar.update()
            if number % 20 == 0:
                progress.write("epoch", file=io.StringIO())
    drawn = stderr.getvalue()
    assert least <= drawn.count("/100") <= most
    assert "100/100" in drawn
