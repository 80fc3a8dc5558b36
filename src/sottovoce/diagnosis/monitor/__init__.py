"""The run monitor: findings as they happen."""

from sottovoce.diagnosis.monitor.monitor import RunMonitor as RunMonitor
