"""`audiovq tokenize` on a GPU writes the token data set that it writes on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from audiovq.tokens import TokenSet


@pytest.mark.cuda
def test_the_shipped_model_tokenizes_as_on_the_cpu(run, six_files, tmp_path, gpu):
    """In batches, and with an utterance that is longer than a batch and read piece by piece."""
    sets = []
    for number, device in enumerate(("cpu", gpu)):
        output = tmp_path / str(number)
        options = ("--output", output, "--device", device, "--batch-seconds", 1.5)
        assert run("tokenize", "speech-16k", six_files, *options)[0] == 0
        sets.append(TokenSet(output))
    rows = [list(tokens) for tokens in sets]
    assert len(rows[0]) == 6
    assert [(row.utt_id, row.num_samples, row.num_frames) for row in rows[1]] == [
        (row.utt_id, row.num_samples, row.num_frames) for row in rows[0]
    ]
    expected, found = (np.concatenate([row.codes for row in part], 1) for part in rows)
    differ = (found != expected).any(0).sum()
    assert differ <= 0.001 * expected.shape[1], f"{differ} of {expected.shape[1]} frames have other codes"
