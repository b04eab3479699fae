"""Watching a run: loggers, lost time, profiles, hangs."""
