"""What to run first, and to paste into a bug report: `python -m fastseg_losses.selfcheck`.

It says what the machine is, computes every loss here and compares value and gradient with the
formula in float64. `formulas.py` holds those, `cases.py` the losses and their inputs, `check.py`
the comparison, `timing.py` the clock, `environment.py` the machine, `__main__.py` the command.
"""
