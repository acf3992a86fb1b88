"""Finds the same picture saved twice: fingerprints, groups of near-duplicates, and a report to look at."""
