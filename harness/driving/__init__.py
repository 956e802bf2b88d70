"""Driving tools that load trained runs: results, pictures, tables."""
