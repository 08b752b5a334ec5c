import math

import torch

from sinelr_lightning.models.encodings import frequency_encoding, frequency_encoding_size


def test_worked_example():
    x = torch.tensor([0.0, math.pi / 2, 0.0])
    expected = torch.tensor([0, math.pi / 2, 0, 0, 1, 0, 1, 0, 1])
    torch.testing.assert_close(frequency_encoding(x, 1), expected, atol=1e-6, rtol=0)


def test_sizes_of_the_paper():
    assert frequency_encoding_size(3, 10) == frequency_encoding(torch.zeros(2, 3), 10).shape[-1] == 63
    assert frequency_encoding_size(3, 4) == 27


def test_octaves_are_sines_of_doubled_arguments():
    x = torch.tensor([[0.3, -0.7, 1.1]])
    encoded = frequency_encoding(x, 3)
    torch.testing.assert_close(encoded[:, 3:12], torch.cat([(x * 2**i).sin() for i in range(3)], -1))
    torch.testing.assert_close(encoded[:, 12:], torch.cat([(x * 2**i).cos() for i in range(3)], -1))
