"""Every part of the package reads times alike: flags, annotations, replies, `find`."""

import pytest

from videopanda.cli.checks import duration
from videopanda.data.formats.record import seconds as range_of
from videopanda.evaluation.benchmarks.files import AnnotationRow
from videopanda.evaluation.scoring.extract import interval
from videopanda.inference.find import _stated
from videopanda.video.times import seconds

TIMES = {
    "75": 75.0,
    "75.5": 75.5,
    "1:15": 75.0,
    "1:02:03": 3723.0,
    "0:01:02.5": 62.5,
    "01h02m03s": 3723.0,
    "2 min 5 s": 125.0,
    "2min5s": 125.0,
    "1 hour, 2 minutes and 3 seconds": 3723.0,
    "1 h 30 s": 3630.0,
    "1.5h": 5400.0,
    "90s": 90.0,
    "2 Minuten und 5 Sekunden": 125.0,
    "2 минуты 5 секунд": 125.0,
    "1 час и 3 секунды": 3603.0,
    "2 мин. 5 сек.": 125.0,
}


@pytest.mark.parametrize(("text", "wanted"), TIMES.items())
def test_a_time_is_the_same_everywhere(text, wanted):
    assert seconds(text) == wanted
    assert duration(text) == wanted
    assert range_of({"start": text}) == (wanted, None)
    assert AnnotationRow("", {"span": text}).time("span") == wanted
    assert interval(f"from {text} to 2:00:00") == (wanted, 7200.0)
    unit = " seconds" if text.replace(".", "").isdigit() else ""
    assert _stated(f"At {text}{unit}.", 0.0, 0.0, 8000.0) == (wanted - 0.5, wanted + 0.5)


@pytest.mark.parametrize(
    "text", ["", "noon", "-1", "1:2:3:4", "inf", "nan", "1:-5", "-1:61", "1:75", "5 dogs", "2 min 5", "3s2m", "9" * 400]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="expected a time in seconds"):
        seconds(text)


def test_zero_is_a_time_and_no_interval():
    assert seconds("0") == seconds("0:00") == 0
    assert seconds(".5") == 0.5
    with pytest.raises(ValueError, match="more than 0"):
        duration("0s")
