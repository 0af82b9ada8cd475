"""Runs benchmarks and the demonstration."""
