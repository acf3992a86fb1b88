"""Finds images that are saved more than once: fingerprints, groups of near-duplicates, and an HTML report."""
