"""Random damage of many kinds, and counts of the outcomes.

`pytest -m slow tests/faults` runs a twentieth of the cases, and
`FAULTS_SHARE=1 pytest -n 0 -m slow tests/faults` runs all of them.
"""
