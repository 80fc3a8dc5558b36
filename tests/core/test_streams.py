import pytest
import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.streams import WholeTrialPart, check_chunk, check_open, check_streams


def test_every_part_that_needs_the_whole_trial_is_named() -> None:
    check_streams(())
    parts = (WholeTrialPart("model.stem", "a mean; set it to null"), WholeTrialPart("model.conv", "centred"))
    with pytest.raises(ConfigurationError) as raised:
        check_streams(parts)
    assert str(raised.value) == ("cannot work on a stream; model.stem: a mean; set it to null; model.conv: centred")


def test_a_chunk_has_the_channels_of_the_stream_and_finite_values() -> None:
    check_chunk(torch.zeros(0, 4), [None, 4], "[bins, channels]")
    with pytest.raises(DataError, match=r"shape \[3, 5\]: must be \[bins, channels\], here \[any, 4\]"):
        check_chunk(torch.zeros(3, 5), [None, 4], "[bins, channels]")
    with pytest.raises(DataError, match=r"shape \[4\]: must be"):
        check_chunk(torch.zeros(4), [None, 4], "[bins, channels]")
    chunk = torch.zeros(3, 4)
    chunk[1, 2] = torch.nan
    chunk[2] = torch.inf
    with pytest.raises(DataError, match=r"5 values that are not finite, the first at \[1, 2\] .*: nan;"):
        check_chunk(chunk, [None, 4], "[bins, channels]")


def test_nothing_follows_the_end() -> None:
    check_open(False)
    with pytest.raises(DataError, match="this stream has ended: begin the next trial with a new state"):
        check_open(True)
