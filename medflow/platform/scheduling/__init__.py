"""Schedules: what a file says, what stands, and what is to be done about the difference."""
