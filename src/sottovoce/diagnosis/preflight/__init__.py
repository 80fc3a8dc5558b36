"""Preflight: everything that can be known to be wrong before the first step."""

from sottovoce.diagnosis.preflight.preflight import preflight as preflight
