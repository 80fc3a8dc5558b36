"""Losses: per utterance, in nats, float32."""

from sottovoce.losses.ctc import ctc_loss as ctc_loss
from sottovoce.losses.fused_joint import fused_transducer_loss as fused_transducer_loss
from sottovoce.losses.transducer import transducer_loss as transducer_loss
