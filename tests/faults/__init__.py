"""Damage of many kinds, each many times, and the counts of what came of it.

`pytest -m slow tests/faults` takes a tenth of the cases; `FAULTS_SHARE=1` all of them.
"""
