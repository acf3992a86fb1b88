"""Finds images that are saved more than once: fingerprints, groups of near-duplicates, and a report to look at."""
