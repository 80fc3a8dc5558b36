"""Pieces of the page: escaping, alignments, meters."""

from __future__ import annotations

from sottovoce.reporting.html import difference, interval_text, meter, missing, settings, table, text


def test_every_text_is_escaped() -> None:
    assert text("<b>'&\"") == "&lt;b&gt;&#x27;&amp;&quot;"
    assert "<script>" not in missing("<script>", "a <script>") + settings({"<script>": ["<script>"]})
    assert "<script>" not in difference(["<script>"], ["<script>x"]) + table(["<script>"], [])


def test_values_are_shown_as_people_write_them() -> None:
    assert [text(v) for v in (0.1 + 0.2, None, True, [], ["a", 1])] == ["0.3", "–", "yes", "–", "a, 1"]


def test_difference_marks_each_kind_of_error() -> None:
    assert difference(["A", "B", "C"], ["A", "X", "C", "D"]) == (
        '<div class="diff "><span class="ok"><b>A</b></span><span class="s"><b>B</b><i>X</i></span>'
        '<span class="ok"><b>C</b></span><span class="i"><b>∅</b><i>D</i></span></div>'
    )
    assert '<span class="d"><b>B</b><i>∅</i></span>' in difference(["A", "B"], ["A"])


def test_meter_places_value_interval_and_whole() -> None:
    track = meter(0.2, (0.1, 0.4), 0.5, whole=0.25)
    assert 'class="dot" style="left:40.00%"' in track
    assert 'class="range" style="left:20.00%;width:calc(80.00% - 20.00%)"' in track
    assert 'class="whole" style="left:50.00%"' in track
    assert 'class="dot" style="left:100.00%"' in meter(1.3, None, 1.0)
    assert "dot" not in meter(None, None, 1.0)


def test_interval_has_one_unit() -> None:
    assert interval_text((0.1015, 0.129)) == "10.2 – 12.9 %"
    assert interval_text(None) == ""


def test_settings_have_dotted_names() -> None:
    assert "<span>a.b</span><b>1</b>" in settings({"a": {"b": 1}})
    assert "<span>a</span><b>{}</b>" in settings({"a": {}})
