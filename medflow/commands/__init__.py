"""The verbs of the command line, a few to a file.

Modules here import typer and little else at their top, so that ``medflow --help`` answers at once; what
a verb needs is imported inside it.
"""
