"""sottovoce: train, diagnose, evaluate and serve decoders of scarce speech signals."""

__version__ = "0.1.0"
