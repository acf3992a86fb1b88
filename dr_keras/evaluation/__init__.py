"""Evaluates an embedding: retrieval metrics, calibration of distances, query expansion."""
