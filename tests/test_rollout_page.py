"""The data behind the run page, and the file that holds it; the browser's part is in test_page_browser."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from page_fakes import HOSTILE, rollout, write_evaluation, write_journal

from configs.thinking import ThinkingMarks
from rewards.verdict import Verdict
from rollout.page.at_end import try_write
from rollout.page.choosing import choose
from rollout.page.curves import curves
from rollout.page.evaluation import evaluation_view, write_evaluation_page
from rollout.page.flags import ALL_WRONG, FAILED_CHECK, RIGHT_TO_WRONG, TRUNCATED, WRONG_TO_RIGHT
from rollout.page.highlight import Draft, segments
from rollout.page.journal import READ_BYTES, read_source
from rollout.page.options import operator_name
from rollout.page.provenance import provenance
from rollout.page.recorded import TEXT_CHARACTERS, RecordedCall, RecordedRollout, view
from rollout.page.sources import evenly

PAGE = Path("rollout/page")
RIGHT, WRONG = True, False


def _data(path: Path) -> dict:
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8")
    )
    return json.loads(found)


def _recorded(*calls: tuple[str, int, tuple[int, ...], str | None], **changes: str) -> RecordedRollout:
    made = [
        RecordedCall(
            role=role,
            round=number,
            parents=parents,
            context=f"{role}{number}",
            text="a solution",
            finish=changes.get("finish", "stop"),
            label="ok",
            verdict=verdict,
            answer=None,
            found_by="",
            reason="",
            prompt_tokens=3,
            completion_tokens=2,
        )
        for role, number, parents, verdict in calls
    ]
    return RecordedRollout(
        source="s", operator="pdr", problem="p", question="q", gold="7", calls=tuple(made), prompts={}
    )


def test_the_parts_of_a_prompt_are_the_drafts_in_their_order_and_add_up_to_it():
    drafts = [Draft(call=2, text="equal"), Draft(call=0, text="other"), Draft(call=1, text="equal")]
    prompt = "Draft 1: equal Draft 2: other Draft 3: equal. Check."
    found = segments(prompt, drafts)
    assert "".join(part.text for part in found) == prompt
    assert [(part.call, part.text) for part in found if part.call is not None] == [
        (2, "equal"),
        (0, "other"),
        (1, "equal"),
    ]


def test_a_draft_is_recognised_whose_end_the_bound_cut_or_whose_start_was_not_stored():
    long = "".join(f"step {i} of the solution; " for i in range(20))
    first = segments(f"{long[200:].strip()} then more", [Draft(call=0, text=long)])
    assert [part.call for part in first] == [0, None]
    cut = segments(f"Workspace: {long[:100]}\n\nCheck.", [Draft(call=0, text=long)])
    assert [part.call for part in cut] == [None, 0, None]
    assert cut[1].text == long[:100]
    assert segments("nothing of it", [Draft(call=0, text="a text that is elsewhere")])[0].call is None


@pytest.mark.parametrize(
    ("drafts", "answer", "flags"),
    [
        (["wrong", "correct"], "correct", {WRONG_TO_RIGHT}),
        (["wrong", "wrong"], "correct", {WRONG_TO_RIGHT, ALL_WRONG}),
        (["correct", "wrong"], "wrong", {RIGHT_TO_WRONG}),
        (["correct", "correct"], "correct", set()),
        (["wrong", "wrong"], "wrong", {ALL_WRONG}),
        (["correct", "correct"], "timeout", {RIGHT_TO_WRONG, FAILED_CHECK}),
    ],
)
def test_flags_compare_an_answer_with_the_drafts_that_it_read(drafts, answer, flags):
    places = tuple(range(len(drafts)))
    made = _recorded(*(("draft", 0, (), each) for each in drafts), ("refine", 1, places, answer))
    assert set(made.facts.flags) == flags
    assert (made.facts.drafts, made.facts.drafts_right) == (2, drafts.count("correct"))
    assert made.facts.tokens == 5 * 3


def test_drafts_behind_a_summary_count_and_a_call_at_its_limit_is_truncated():
    summed = _recorded(
        ("draft", 0, (), "wrong"), ("distil", 0, (0,), None), ("refine", 1, (1,), "correct"), finish="length"
    )
    assert set(summed.facts.flags) == {WRONG_TO_RIGHT, ALL_WRONG, TRUNCATED}
    assert summed.facts.chosen == (2,)


def test_calls_are_split_into_thinking_and_solution_and_long_texts_keep_their_end():
    made = rollout("p", [("first", RIGHT)], ("y" * 9_000 + r" \boxed{7}", RIGHT))
    recorded = RecordedCall(
        role="trace",
        round=0,
        parents=(),
        context="c",
        text=made.calls[-1].text,
        finish="stop",
        label="ok",
        verdict="correct",
        answer="7",
        found_by="box",
        reason="",
        prompt_tokens=1,
        completion_tokens=1,
    )
    whole = RecordedRollout(
        source="s",
        operator="t",
        problem="p",
        question="q",
        gold="7",
        calls=(recorded,),
        prompts={"c": "say q"},
    )
    shown = view(whole, ThinkingMarks()).calls[0]
    assert (shown.thinking, shown.found_by) == ("thought of p", "box")
    assert shown.solution.endswith(r"\boxed{7}") and len(shown.solution) == TEXT_CHARACTERS
    assert shown.solution_left_out == 9_010 - TEXT_CHARACTERS
    assert not shown.reads_workspace and not shown.is_fallback


def test_a_refinement_that_reads_the_plain_problem_is_a_fallback():
    calls = (("draft", 0, (), "wrong"), ("refine", 0, (0,), "wrong"))
    made = _recorded(*calls)
    same = RecordedRollout(
        **{name: getattr(made, name) for name in ("source", "operator", "problem", "question", "gold")},
        calls=tuple(
            RecordedCall(**{**{f: getattr(c, f) for f in c.__slots__}, "context": "plain"})
            for c in made.calls
        ),
        prompts={},
    )
    assert view(same, ThinkingMarks()).calls[1].is_fallback
    assert view(made, ThinkingMarks()).calls[1].reads_workspace


def test_a_small_page_holds_some_of_every_kind_and_the_counts_of_all(tmp_path: Path):
    usual = [rollout(f"usual{i}", [("a", RIGHT)], ("b", RIGHT)) for i in range(200)]
    rare = rollout("rare", [("a", RIGHT)], ("b", WRONG))
    path = tmp_path / "rollouts.jsonl"
    write_journal(path, [*usual, rare, *usual])
    source, shown = read_source(path, "evaluation", ThinkingMarks(), None, limit=20_000)
    assert (source.rollouts, source.shown) == (401, len(shown))
    assert 2 <= len(shown) < 60
    assert "rare" in {each.problem for each in shown}
    assert source.flags[RIGHT_TO_WRONG] == 1
    assert len(json.dumps([each.problem for each in shown])) < 20_000


def test_of_a_large_journal_every_nth_rollout_is_read_and_the_page_tells(tmp_path: Path, monkeypatch):
    path = tmp_path / "rollouts.jsonl"
    write_journal(path, [rollout(f"p{i}", [("a", RIGHT)], ("b", RIGHT)) for i in range(9)])
    monkeypatch.setattr("rollout.page.journal.READ_BYTES", path.stat().st_size // 3 + 1)
    source, shown = read_source(path, "evaluation", ThinkingMarks(), None, limit=10**6)
    assert [each.problem for each in shown] == ["p0", "p3", "p6"]
    assert "one of every 3 rollouts" in source.note
    assert READ_BYTES > 10**8


def test_a_line_of_another_version_is_named(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"identity":{}}\n{"outcome":{"operator":3}}\n')
    with pytest.raises(ValueError, match=r"rollouts\.jsonl line 2 is not a rollout"):
        read_source(path, "evaluation", ThinkingMarks(), None, limit=1)


def test_the_first_choice_is_shown_even_if_it_is_larger_than_the_limit():
    made = _recorded(("trace", 0, (), "correct"))
    assert len(choose([made.facts] * 2, ["t", "t"], lambda _: view(made, ThinkingMarks()), 1)) == 1


def test_evenly_spaced_items_include_the_ends():
    assert evenly(range(5), 12) == [0, 1, 2, 3, 4]
    assert evenly(range(1, 41), 3) == [1, 20, 40] or evenly(range(1, 41), 3) == [1, 21, 40]


def test_curves_are_thinned_but_steps_with_an_alarm_stay_and_no_number_is_not_finite():
    lines = [{"step": step, "reward": step / 3, "kl/x": float("nan")} for step in range(1, 101)]
    found = curves(lines, keep=[50], points=5)
    assert found.steps[0] == 1 and found.steps[-1] == 100 and 50 in found.steps
    assert len(found.steps) <= 6 and "of 100 steps" in found.note
    assert found.values["reward"][0] == 0.333333
    assert set(found.values["kl/x"]) == {None}


def test_an_evaluation_page_shows_its_prompts_with_the_drafts_in_them(tmp_path: Path):
    folder = write_evaluation(
        tmp_path / "ev", [rollout("p", [("first draft text", WRONG), ("second one", RIGHT)], ("done", RIGHT))]
    )
    run = evaluation_view(folder, 10**6)
    (shown,) = run.rollouts
    refine = shown.calls[-1]
    parts = [
        (part.call, part.text) for part in shown.prompts[refine.prompt].segments if part.call is not None
    ]
    assert parts == [(0, "first draft text"), (1, "second one")]
    assert refine.reads_workspace and shown.flags == (WRONG_TO_RIGHT,)
    assert run.facts["operators"] == "trace; pdr (top_k 2)"
    assert not run.notes


def test_a_page_tells_how_an_answer_was_found_if_the_verifier_told(tmp_path: Path):
    silent = rollout("silent", [("a", WRONG)], ("b", RIGHT))
    verdict = Verdict(status="unparsable", answer="b", found_by="marker", reason="no number")
    path = tmp_path / "rollouts.jsonl"
    write_journal(path, [silent, replace(silent, verdicts={0: silent.verdicts[0], 1: verdict})])
    _, (first, second) = read_source(path, "evaluation", ThinkingMarks(), None, limit=10**6)
    assert [(call.found_by, call.reason) for call in first.calls] == [("", "")] * 2
    assert [(call.found_by, call.reason) for call in second.calls] == [("", ""), ("marker", "no number")]


def test_without_its_tokenizer_the_page_tells_that_prompts_are_missing(tmp_path: Path):
    folder = write_evaluation(tmp_path / "ev", [rollout("p", [("a", WRONG)], ("b", RIGHT))])
    (folder / "policy" / "tokenizer.json").unlink()
    run = evaluation_view(folder, 10**6)
    assert run.rollouts[0].prompts[0].segments == ()
    assert any("tokenizer" in note for note in run.notes)


def test_hostile_texts_are_data_and_nothing_else(tmp_path: Path):
    folder = write_evaluation(
        tmp_path / "ev",
        [rollout(f"p{i}", [(text, WRONG)], (text, RIGHT), question=text) for i, text in enumerate(HOSTILE)],
    )
    path = write_evaluation_page(folder)
    html = path.read_text("utf-8")
    usual = write_evaluation_page(
        write_evaluation(tmp_path / "usual", [rollout("p", [("a", RIGHT)], ("b", RIGHT))])
    )
    for tag in ("<script", "</script", "<!--", "<img", "<svg"):
        assert html.count(tag) == usual.read_text("utf-8").count(tag), tag
    texts = {each["calls"][-1]["solution"] for each in _data(path)["runs"][0]["rollouts"]}
    assert texts == {text.strip()[-TEXT_CHARACTERS:] for text in HOSTILE}


def test_the_policy_of_the_page_names_the_hash_of_each_script_and_forbids_the_network(tmp_path: Path):
    path = write_evaluation_page(
        write_evaluation(tmp_path / "ev", [rollout("p", [("a", RIGHT)], ("b", RIGHT))])
    )
    html = path.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#x27;", "'")
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert "http" not in policy and "require-trusted-types-for 'script'" in policy
    for script in re.findall(r"<script>(.*?)</script>", html, re.S):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r'(src|href)="(?!#)', without_scripts), "nothing is loaded from elsewhere"
    assert path.stat().st_size < 4_000_000


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path: Path):
    line = try_write(write_evaluation_page, tmp_path / "nowhere")
    assert "\n" not in line and "was not written: FileNotFoundError" in line
    written = try_write(
        write_evaluation_page, write_evaluation(tmp_path / "ev", [rollout("p", [("a", RIGHT)], ("b", RIGHT))])
    )
    assert written == f"Run page: {tmp_path / 'ev' / 'page.html'}"


def test_libraries_are_as_their_hashes_say_and_small_enough_for_the_repository():
    names = set()
    for line in (PAGE / "vendor" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ./")
        content = (PAGE / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        assert len(content) < 2**20
        names.add(name)
    others = {"README.md", "SHA256SUMS", "fetch.sh"}
    assert {path.name for path in (PAGE / "vendor").iterdir()} == names | others
    licences = [(PAGE / "vendor" / name).read_text() for name in sorted(names) if name.endswith(".LICENSE")]
    assert len(licences) == 3 and all("Permission is hereby granted" in text for text in licences)


def test_our_scripts_make_no_html_from_strings():
    for path in (PAGE / "assets").glob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path
        assert len(text.splitlines()) <= 300, path


def _luminance(color: str) -> float:
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_what_is_behind_it(scheme: str):
    style = (PAGE / "assets" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[["light", "dark"].index(scheme)]))
    pairs = [(text, behind) for text in ("text", "quiet", "link") for behind in ("surface", "raised", "note")]
    pairs += [("text", f"{name}-fill") for name in ("correct", "wrong", "odd", "none")]
    pairs += [("text", f"part-{i}") for i in range(8)] + [("text", "alarm")]
    pairs += [(name, behind) for name in ("correct", "wrong", "odd") for behind in ("surface", "note")]
    for text, behind in pairs:
        low, high = sorted((_luminance(colors[text]), _luminance(colors[behind])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)
    for i in range(8):  # lines: 3 is enough
        low, high = sorted((_luminance(colors[f"series-{i}"]), _luminance(colors["surface"])))
        assert (high + 0.05) / (low + 0.05) >= 3, i


def test_an_operator_with_options_is_named_with_them():
    assert operator_name("trace") == "trace"
    assert operator_name({"pdr": {"schedule": [8, 4, 1], "top_k": 2}}) == "pdr (schedule 8, 4, 1, top_k 2)"


def test_the_provenance_names_the_machine():
    machine, *commit = provenance()
    assert re.fullmatch(r"machine \w+ \w+, \d+ cores.*", machine)
    assert all(re.fullmatch(r"commit [0-9a-f]{7,12}(-dirty)?", line) for line in commit)
