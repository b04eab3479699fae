"""Measurements, each a script that prints JSON."""
