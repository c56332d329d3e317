"""Benchmarks: every figure that the project states is printed by something in here."""
