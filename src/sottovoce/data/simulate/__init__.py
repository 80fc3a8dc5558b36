"""Simulated data sets in official layouts, with the ground truth that real ones lack."""

from sottovoce.data.simulate.lexicon import load_lexicon
from sottovoce.data.simulate.sentences import all_sentences
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import SimulationSummary, simulate_t15

__all__ = ["SimulationSettings", "SimulationSummary", "all_sentences", "load_lexicon", "simulate_t15"]
