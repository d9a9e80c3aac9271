"""Shared by all tests: determinism, and no progress of one test leaking into another."""
