"""Diagnosis: what goes wrong in training, found before, during and after it, with the evidence and the fix."""

from sottovoce.core.findings import Finding as Finding
from sottovoce.diagnosis.causes import Cause as Cause
from sottovoce.diagnosis.causes import cause as cause
from sottovoce.diagnosis.watcher import RunWatch as RunWatch
