from __future__ import annotations

import numpy as np
import pytest

from pipeline.philox import philox, words

F = 0xFFFFFFFF
# Known answers of philox4x32-10, from the kat_vectors file of the Random123 distribution.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(philox(np.array([counter], dtype=np.uint64), key)[0]) == expected


def test_words_do_not_depend_on_their_neighbours() -> None:
    together = words(5, 2, 1, np.arange(100))
    alone = np.concatenate([words(5, 2, 1, np.array([i])) for i in range(100)])
    np.testing.assert_array_equal(together, alone)


def test_seed_epoch_and_stream_all_enter() -> None:
    base = words(1, 2, 3, np.arange(4))
    for other in (words(2, 2, 3, np.arange(4)), words(1, 3, 3, np.arange(4)), words(1, 2, 4, np.arange(4)), words(1 + 2**32, 2, 3, np.arange(4))):
        assert (base != other).all()
