"""Types of command-line options."""

import math

import pytest

from elc_bert.utils import options

HUGE = ("10" * 2000, str(10**12 + 1), str(2**63))
NO_NUMBERS = ("", " ", "x", "1.5", "1e3", "0x10", "nan", "inf", "Infinity", "true", "None")


@pytest.mark.parametrize(
    ("parse", "smallest", "largest"),
    [
        (options.positive_int, 1, 10**12),
        (options.non_negative_int, 0, 10**12),
        (options.process_count, 1, 4096),
    ],
)
def test_whole_numbers_have_limits(parse, smallest, largest):
    assert (parse(str(smallest)), parse(str(largest))) == (smallest, largest)
    for text in (*NO_NUMBERS, *HUGE, str(smallest - 1), str(largest + 1), "-5"):
        with pytest.raises(ValueError):  # noqa: PT011 (argparse takes any)
            parse(text)


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (
            options.positive_float,
            ["1", "0.5", "1e300", "5e-324"],
            ["0", "-1", "nan", "inf", "1e400", "x", ""],
        ),
        (options.share, ["1", "0.5", "1e-300"], ["0", "1.0001", "-1", "nan", "inf", "x", ""]),
    ],
)
def test_numbers_are_finite_and_in_range(parse, good, bad):
    for text in good:
        assert math.isfinite(parse(text))
    for text in bad:
        with pytest.raises(ValueError):  # noqa: PT011 (argparse takes any)
            parse(text)


def test_an_endpoint_has_a_host_and_a_port():
    for text in ("node1:29400", "10.0.0.1:1", "[fe80::1]:65535", "fe80::1:80"):
        assert options.host_and_port(text) == text
    for text in ("node1", "node1:", ":29400", " :1", "node1:0", "node1:65536", "node1:x", "node1:1.5", ""):
        with pytest.raises(ValueError):  # noqa: PT011 (argparse takes any)
            options.host_and_port(text)
