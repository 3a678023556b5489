"""Markdown tables and the numbers in them."""

from rollout.evaluation.tables import markdown_table, percent, percent_interval


def test_a_table_has_a_rule_as_wide_as_its_head_and_a_line_for_each_row():
    assert markdown_table(["arm", "pdr"], [["one", "84.2"], ["two", ""]]) == [
        "| arm | pdr |",
        "| --- | --- |",
        "| one | 84.2 |",
        "| two |  |",
    ]


def test_shares_are_written_in_percent_and_an_unknown_one_is_an_empty_cell():
    assert [percent(share) for share in (0.0, 0.8416, 1.0, None)] == ["0.0", "84.2", "100.0", ""]


def test_an_interval_stands_in_brackets_and_a_difference_has_a_sign_throughout():
    assert percent_interval(0.8416, 0.812, 0.871) == "84.2 [81.2, 87.1]"
    assert percent_interval(0.013, -0.004, 0.03, sign="+") == "+1.3 [-0.4, +3.0]"
