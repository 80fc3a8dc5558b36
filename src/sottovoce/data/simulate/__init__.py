"""Simulated data sets in official layouts, with the ground truth that real ones lack."""
