"""Figures from finished runs: what is measured (one module a figure), and the one style that all of them have."""
