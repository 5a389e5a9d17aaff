"""The verbs of the command line, a file each; `add_to` of each adds its arguments and its handler.

A handler takes the parsed options and returns the exit status. Heavy imports happen inside handlers.
"""

from gpo.verbs import doctor, eval, generate, plan, report, reward, run, show, submit, tournament

ALL = (run, submit, reward, generate, eval, tournament, report, show, plan, doctor)
"""In the order of `gpo --help`."""
