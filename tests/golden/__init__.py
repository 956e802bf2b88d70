"""Figures of the reference implementations and the checker that compares the algorithms with them."""
