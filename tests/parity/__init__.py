"""Checks against recorded outputs of the reference implementations. tests/test_golden.py runs them."""
