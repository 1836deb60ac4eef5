"""Schedules on a cluster: a schedule at the ZenML server, a CronJob, and a Secret with the token of its runs."""
