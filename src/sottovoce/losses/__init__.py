"""Losses: per utterance, in nats, float32."""

from sottovoce.losses.ctc import ctc_loss as ctc_loss
