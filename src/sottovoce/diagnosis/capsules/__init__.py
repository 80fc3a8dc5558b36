"""Capsules: bad steps kept whole, computed again and taken apart."""
