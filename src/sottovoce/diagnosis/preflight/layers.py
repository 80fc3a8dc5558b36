"""Questions to the layers of this run's model and to its features: what they read, move and hold.

Legend: B trials, T bins, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Batch
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.numbers import half_precision_parts
from sottovoce.diagnosis.preflight.padding import check_padding
from sottovoce.diagnosis.preflight.ssm import check_ssm, decays_in_low_precision, needs_another_device
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.models import compose
from sottovoce.models.compose import DecoderModel, ModelConfig

SHIFT_TOLERANCE: Final = 1e-3
"""Bins between an impulse and the centre of its response (catalogue row F7)."""
IMPULSE_BINS: Final = 101
FUTURE_TOLERANCE: Final = 1e-4
"""Change of early features, relative to their size, when late ones change."""
EARLY: Final = 0.25
"""Share of a trial that counts as early; the second half is changed."""
FULL: Final = (torch.float32, torch.float64)


def check_precision(untrained: UntrainedRun) -> Iterator[Finding]:
    """Parameters in formats that cannot hold them; asked before anything is computed with them."""
    yield from half_precision_parts(untrained)
    yield from decays_in_low_precision(untrained)


def check_layers(untrained: UntrainedRun) -> Iterator[Finding]:
    """What is wrong with the model's layers and the features; the model is the run's own, on its own first trials."""
    replaced = list(replaced_parts(untrained))
    yield from replaced
    if not replaced:
        yield from check_ssm(untrained)
    yield from smoothing_shift(untrained)
    if all(p.dtype in FULL for p in untrained.computer.model.parameters()):
        if not needs_another_device(untrained):
            yield from check_padding(untrained)
        yield from looks_ahead(untrained)


def replaced_parts(untrained: UntrainedRun) -> Iterator[Finding]:
    """The model is what its configuration names: the class of each part, and every parameter's name and shape."""
    config, model = untrained.prepared.config.model, untrained.computer.model
    for what, wanted, got in _classes(config, model):
        if wanted != got:
            yield found("backend_replaced", f"{what} asks for {wanted}, but the model has {got}.", "preflight")
            return
    with torch.random.fork_rng(()), torch.device("meta"):
        fresh = {name: tuple(p.shape) for name, p in compose.build_model(config).named_parameters()}
    built = {name: tuple(p.shape) for name, p in model.named_parameters()}
    differing = sorted(name for name in fresh.keys() | built.keys() if fresh.get(name) != built.get(name))
    if differing:
        name = differing[0]
        counts = [sum(torch.Size(shape).numel() for shape in shapes.values()) for shapes in (built, fresh)]
        yield found(
            "backend_replaced",
            f"The model has {counts[0]:,} parameters, its configuration makes {counts[1]:,}; {len(differing)} differ, "
            f"for example {name}: {built.get(name, 'missing')} instead of {fresh.get(name, 'nothing')}.",
            "preflight",
        )


def _classes(config: ModelConfig, model: DecoderModel) -> Iterator[tuple[str, str, str]]:
    """What asks, the class or size it asks for, and what is there."""
    kind = config.encoder_kind
    yield f"model.{kind.section}", kind.encoder.__name__, type(model.encoder).__name__
    optional: tuple[tuple[str, object, object], ...] = (
        ("session_adapter", config.session_adapter, model.session_adapter),
        ("stem", config.stem, model.stem),
        ("transducer", config.transducer, model.transducer),
        ("speaking_mode", config.speaking_mode, model.speaking_mode),
    )
    for name, wanted, part in optional:
        yield f"model.{name}", _presence(wanted), _presence(part)
    if isinstance(model.encoder, kind.encoder):
        yield from model.encoder.as_asked(getattr(config, kind.section))


def _presence(part: object) -> str:
    return "such a part" if part is not None else "none"


def smoothing_shift(untrained: UntrainedRun) -> Iterator[Finding]:
    """An impulse that is smoothed stays where it was."""
    pipeline = copy.copy(untrained.computer.pipeline)
    if not pipeline.taps:
        return
    pipeline.preprocessor = replace(pipeline.preprocessor, log_mel=None, normalisation="none")
    middle = IMPULSE_BINS // 2
    signal_1TC = torch.zeros(1, IMPULSE_BINS, pipeline.preprocessor.num_channels)
    signal_1TC[0, middle] = 1.0
    one = torch.tensor([0])
    batch = Batch(signal_1TC, torch.tensor([IMPULSE_BINS]), one[None], one, one, ("impulse",))
    response_T = pipeline.evaluate(batch).signal[0, :, 0].double()
    centre = float((response_T * torch.arange(len(response_T))).sum() / response_T.sum())
    if not abs(centre - middle) <= SHIFT_TOLERANCE:
        yield found(
            "smoothing_shift",
            f"An impulse at bin {middle} comes out of the smoothing ({len(pipeline.taps)} taps) centred at bin "
            f"{centre:.3f}: a shift of {centre - middle:+.3f} bins.",
            "preflight",
        )


def looks_ahead(untrained: UntrainedRun) -> Iterator[Finding]:
    """A causal encoder behind features that need the whole trial: what is decoded is no stream.

    A causal encoder that could also look ahead is asked for to decode streams, a GRU is causal anyway: there it is only
    worth knowing.
    """
    encoder = untrained.computer.model.encoder
    if not encoder.causal:
        return
    module, batch = untrained.computer, untrained.part(untrained.whole).batch
    first = replace(batch.map_tensors(lambda x: x[:1]), trial_ids=batch.trial_ids[:1])
    size = int(first.lengths_B[0])
    changed = replace(first, signal=first.signal.clone())
    changed.signal[:, size // 2 : size] = 3 * first.signal[:, size // 2 : size].flip(1) + 1
    device = next(module.model.parameters()).device
    early, late = (module.pipeline.evaluate(b.map_tensors(torch.Tensor.clone)).to(device) for b in (first, changed))
    change, where = _early_change(early.signal, late.signal), "the features"
    stem = module.model.stem
    if change <= FUTURE_TOLERANCE and stem is not None:
        was_training = [(part, part.training) for part in stem.modules()]
        stem.eval()
        with torch.no_grad():
            change = _early_change(*(stem(b.signal, b.lengths_B)[0] for b in (early, late)))
        for part, training in was_training:
            part.training = training
        where = "the frames that model.stem makes"
    if change > FUTURE_TOLERANCE:
        yield found(
            "noncausal_normalisation",
            f"When the second half of a trial changes, {where} of its first quarter change by {change:.2g} of their "
            "size; the encoder behind them is causal.",
            "preflight",
            severity=None if encoder.can_look_ahead else "note",
        )


def _early_change(before: torch.Tensor, after: torch.Tensor) -> float:
    frames = max(int(EARLY * before.shape[1]), 1)
    a, b = before[:, :frames], after[:, :frames]
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
