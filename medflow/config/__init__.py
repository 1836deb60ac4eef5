"""Settings: what they are (``sections``) and how they are read (``reading``).

Nothing is imported here, so that a step which reads one section does not reach the reader of files.
"""
