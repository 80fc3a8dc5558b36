"""Levels that the monitor, while a run goes on, and the explainer, over its records, judge by alike.

Rows are those of docs/failures/README.md. What is called policy is chosen, not measured: a sign is raised and cleared
at different levels, so that one which comes and goes is one event, and slow signs must last.
"""

from __future__ import annotations

from typing import Final

BLANK: Final = 0.95
LEFT: Final = 0.85
"""Share of frames whose best symbol is the blank: a collapse begins at the first and ends at the second (row D6)."""
AT_FLOOR: Final = 0.95
"""CTC loss over the input-blind floor F from which the input is not used (row D6 a)."""
ABOVE_FLOOR: Final = 1.1
"""A loss further above F is not that of constant answers: the model is still, or again, worse than they are."""
LEARNT_SHARE: Final = 0.8
"""A training loss below this share of F shows that the training trials are being learnt (row D5)."""
OFF_FLOOR: Final = 0.9
"""Below it the input is used for certain: batches differ by some per cent."""
SPIKE: Final = 4.0
FEWEST_SPIKES: Final = 3
SPIKE_WINDOW: Final = 100
"""Norms above 4 running medians in 3 of 100 steps (row D3)."""
INCIDENT_STEPS: Final = 3
INCIDENT_WINDOW: Final = 200
"""So many bad steps among so many, or two in a row, are an incident (policy); fewer are events."""
HIGH_RATE: Final = 0.5
"""Share of the peak rate above which the schedule is suspected (row D4)."""
EVALUATIONS: Final = 3
"""Validations in a row that must be worse than the best one (policy)."""
LARGE_EPS: Final = 1e-3
"""From here on ε is compared with what the gradients can be (row D1)."""
