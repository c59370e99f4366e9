"""Damage of many kinds, each many times, and the counts of what came of it.

`pytest -m slow tests/faults` takes a twentieth of the cases, and
`FAULTS_SHARE=1 pytest -n 0 -m slow tests/faults` all of them.
"""
