"""Leaderboards: what a suite asks for, running what is missing, the standings, and their tables."""
