"""Known answers: grids of published systems, written down from their papers and code."""

import torch

from proves import proves
from vivavoce.layouts import OPEN, Given, StreamSpec, build_layout, show


def picture(spec, streams, lengths, given=None, seed=None) -> list[list[str]]:
    """The grid of one row as `show` writes it, without the stars of the loss, one list a lane."""
    places = build_layout(spec, streams).place({k: torch.tensor([n]) for k, n in lengths.items()}, given, seed)
    return [line.replace("*", "").split() for line in show(places).split("\n")]


def words(text: str) -> list[str]:
    return text.split()


@proves("musicgen", "mechanism")
def test_musicgen_delay():
    """arXiv:2306.05284, section 2.2 and figure 1: codebook k is shifted k steps; T frames take T + 3 columns."""
    layout = build_layout({"kind": "delay"}, [StreamSpec("audio", 4, 50)])
    assert layout.lanes == 4 and layout.delays == {"audio": [0, 1, 2, 3]}
    places = layout.place({"audio": torch.tensor([1500, 0])})
    assert places.columns.tolist() == [1503, 0]
    assert picture({"kind": "delay"}, [StreamSpec("audio", 4, 50)], {"audio": 3}) == [
        words("a0.0 a0.1 a0.2 . . ."), words(". a1.0 a1.1 a1.2 . ."),
        words(". . a2.0 a2.1 a2.2 ."), words(". . . a3.0 a3.1 a3.2"),
    ]
    codes = torch.arange(4 * 1500).view(1, 4, 1500)
    grid = layout.place({"audio": torch.tensor([1500])}).grid({"audio": codes}, blank=2048)
    for k in range(4):
        assert torch.equal(grid[0, k, k : k + 1500], codes[0, k])
        assert bool((grid[0, k, :k] == 2048).all()) and bool((grid[0, k, k + 1500 :] == 2048).all())


@proves("musicgen", "mechanism")
def test_musicgen_other_patterns():
    """Figure 1: parallel; flattening, T*K columns; partial flattening; and "VALL-E": first codebook first."""
    audio = [StreamSpec("audio", 4, 50)]
    assert picture({"kind": "parallel"}, audio, {"audio": 2})[3] == words("a3.0 a3.1")
    assert picture({"kind": "flat"}, audio, {"audio": 2}) == [words("a0.0 a1.0 a2.0 a3.0 a0.1 a1.1 a2.1 a3.1")]
    assert picture({"kind": "delay", "stride": 2, "delays": {"audio": [0, 1, 1, 1]}}, audio, {"audio": 2}) == [
        words("a0.0 . a0.1 ."), words(". a1.0 . a1.1"), words(". a2.0 . a2.1"), words(". a3.0 . a3.1"),
    ]
    vall_e = {"kind": "template", "lanes": "own", "order": ["audio[0]", {"kind": "parallel", "streams": ["audio[1:]"]}]}
    assert picture(vall_e, audio, {"audio": 2}) == [
        words("a0.0 a0.1 . ."), words(". . a1.0 a1.1"), words(". . a2.0 a2.1"), words(". . a3.0 a3.1"),
    ]


def test_vall_e_positions_restart():
    """arXiv:2301.02111, section 4: phones and codes have positions of their own; the prompt's codes are given."""
    streams = [StreamSpec("phones", given=True), StreamSpec("voice", 8, 75)]
    layout = build_layout({"kind": "template", "positions": "segment", "order": ["phones", "voice[0]"]}, streams)
    lengths = {"phones": torch.tensor([3]), "voice": torch.tensor([4])}
    places = layout.place(lengths, Given(known={"voice": torch.tensor([2])}))
    assert places.position.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert places.loss.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert layout.dropped == {"voice[1, 2, 3, 4, 5, 6, 7]": "has no place in this layout"}


@proves("moshi", "mechanism")
def test_moshi_streams():
    """arXiv:2410.00037, section 3.4.4: text, 8 own and 8 user codebooks; acoustic levels one frame late; 17 lanes with
    delays [0, 0, 1x7, 0, 1x7]. Text and own voice are learned, the user's voice is given."""
    streams = [StreamSpec("text", rate=12.5, blank=32000), StreamSpec("voice", 8, 12.5, blank=2048),
               StreamSpec("user", 8, 12.5, given=True, blank=2048)]
    acoustic = [0, 1, 1, 1, 1, 1, 1, 1]
    layout = build_layout({"kind": "multistream", "delays": {"text": 0, "voice": acoustic, "user": acoustic}}, streams)
    assert layout.lanes == 17
    assert [d for each in layout.delays.values() for d in each] == [0, *acoustic, *acoustic]
    assert [layout.lane_of("text"), layout.lane_of("voice", 7), layout.lane_of("user", 0)] == [0, 8, 9]
    state = layout.start(2)
    first, state = layout.next(None, state)
    # Acoustic levels are not there yet: their initial token is forced.
    assert first.forced[0].tolist() == [-1, -1, *[2048] * 7, -1, *[2048] * 7]
    assert first.fill[0].tolist() == [True, True, *[False] * 15]
    assert first.given[0].tolist() == [False] * 9 + [True] + [False] * 7
    for n in range(1, 5):
        column, state = layout.next(torch.zeros(2, 17, dtype=torch.int64), state)
        assert column.index[1].tolist() == [n, n, *[n - 1] * 7, n, *[n - 1] * 7]
        assert column.loss[0].tolist() == [1] * 9 + [0] * 8
        assert not bool(column.done.any())


@proves("mini-omni", "mechanism")
def test_mini_omni_text_and_seven_snac_lanes():
    """arXiv:2408.16725, section 3.1: text and 7 audio layers in parallel, layer i delayed by i+1. The layers are SNAC's
    frame of 1 + 2 + 4 codes in the order of the tree (gpt-omni/mini-omni, utils/snac_utils.py: layers 0; 1, 4;
    2, 3, 5, 6 are the three codebooks)."""
    streams = [StreamSpec("text"), StreamSpec("voice", 3, 12, (1, 2, 4))]
    spec = {"kind": "delay", "clock": "frame", "delays": {"text": 0, "voice": [1, 2, 3, 4, 5, 6, 7]}}
    layout = build_layout(spec, streams)
    assert layout.lanes == 8
    assert [[level for _, level in cells] for cells in layout.lane_cells[1:]] == [[0], [1], [2], [2], [1], [2], [2]]
    assert picture(spec, streams, {"text": 4, "voice": 2}) == [
        words("t.0 t.1 t.2 t.3 . . . . ."),
        words(". v0.0 v0.1 . . . . . ."),
        words(". . v1.0 v1.2 . . . . ."),
        words(". . . v2.0 v2.4 . . . ."),
        words(". . . . v2.1 v2.5 . . ."),
        words(". . . . . v1.1 v1.3 . ."),
        words(". . . . . . v2.2 v2.6 ."),
        words(". . . . . . . v2.3 v2.7"),
    ]


def test_snac_flattened_seven_codes_a_frame():
    """canopyai/Orpheus-TTS, decoder.py: of each 7 codes 0; 1, 4; 2, 3, 5, 6 are the three codebooks. Positions may
    count frames instead of codes."""
    layout = build_layout({"kind": "flat", "positions": "stream"}, [StreamSpec("voice", 3, 12, (1, 2, 4))])
    places = layout.place({"voice": torch.tensor([2])})
    assert places.level[0].tolist() == [0, 1, 2, 2, 1, 2, 2] * 2
    assert places.index[0].tolist() == [0, 0, 0, 1, 1, 2, 3, 1, 2, 4, 5, 3, 6, 7]
    assert places.position[0].tolist() == [0] * 7 + [1] * 7


@proves("glm-4-voice", "mechanism")
def test_glm_4_voice_interleaves_13_and_26():
    """arXiv:2412.02612, section 4.1: 13 text tokens, then 26 speech tokens, in turn; after the text only speech."""
    streams = [StreamSpec("text"), StreamSpec("voice", rate=12.5)]
    layout = build_layout({"kind": "interleaved", "text": 13, "voice": 26}, streams)
    places = layout.place({"text": torch.tensor([30]), "voice": torch.tensor([100])})
    assert "".join("tv"[s] for s in places.stream[0].tolist()) == "".join(
        ["t" * 13, "v" * 26, "t" * 13, "v" * 26, "t" * 4, "v" * 48])


@proves("cosyvoice-2", "mechanism")
def test_cosyvoice_2_streaming_sequence():
    """arXiv:2412.10117, section 2.3 (and prepare_lm_input_target in its llm.py): 5 text, 15 speech while whole rounds
    of text last; then what is left of the text, the turn-of-speech token, the rest of the speech."""
    streams = [StreamSpec("text", given=True), StreamSpec("voice", rate=25)]
    spec = {"kind": "template", "literals": {"sos": 0, "turn": 1},
            "order": ["sos", {"kind": "interleaved", "text": 5, "voice": 15, "turn": "turn"}]}
    layout = build_layout(spec, streams)
    letters = {0: "t", 1: "v", -2: "L"}
    for text, voice, expected in (
        (12, 60, ["L", "t" * 5, "v" * 15, "t" * 5, "v" * 15, "t" * 2, "L", "v" * 30]),
        (10, 40, ["L", "t" * 5, "v" * 15, "t" * 5, "v" * 15, "L", "v" * 10]),
        (3, 20, ["L", "t" * 3, "L", "v" * 20]),
    ):
        places = layout.place({"text": torch.tensor([text]), "voice": torch.tensor([voice])})
        assert "".join(letters[s] for s in places.stream[0].tolist()) == "".join(expected)
        assert int(places.loss.sum()) == voice


@proves("speechgpt", "mechanism")
def test_speechgpt_chain_of_modality():
    """arXiv:2305.11000, section 3.2 and templates: the human's units, then transcript, answer and its units."""
    streams = [StreamSpec("heard", given=True), StreamSpec("transcript"), StreamSpec("answer"), StreamSpec("spoken")]
    spec = {"kind": "dedup", "streams": ["heard", "spoken"], "literals": {"human": 1, "ta": 2, "ua": 3, "eoa": 4},
            "inner": {"kind": "chain-of-modality", "close": "eoa",
                      "tags": {"heard": "human", "transcript": "ta", "answer": "ta", "spoken": "ua"}}}
    units = Given(values={"heard": torch.tensor([[7, 7, 7, 3, 3]]), "spoken": torch.tensor([[5, 5, 2, 2]])})
    lengths = {"heard": 5, "transcript": 2, "answer": 3, "spoken": 4}
    assert picture(spec, streams, lengths, units) == [
        words("<1> h.0 h.3 <2> t.0 t.1 <2> a.0 a.1 a.2 <3> s.0 s.2 <4>")]


@proves("audiolm", "mechanism")
def test_audiolm_stages():
    """arXiv:2209.03143, section III: semantic tokens, then 4 coarse levels frame by frame, then 8 fine ones."""
    streams = [StreamSpec("semantic", rate=25), StreamSpec("voice", 12, 50)]
    layout = build_layout({"kind": "hierarchical", "order": ["semantic", "voice[:4]", "voice[4:]"]}, streams)
    places = layout.place({"semantic": torch.tensor([5]), "voice": torch.tensor([10])})
    cells = list(zip(places.stream[0].tolist(), places.level[0].tolist(), places.index[0].tolist()))
    expected = [(0, 0, i) for i in range(5)]
    expected += [(1, q, i) for i in range(10) for q in range(4)]
    expected += [(1, q, i) for i in range(10) for q in range(4, 12)]
    assert cells == expected


@proves("hall-e", "mechanism")
def test_hall_e_levels_of_rising_rate():
    """arXiv:2410.04380: levels at 8, 16, 24 and 48 Hz are one hierarchy, the slowest first."""
    layout = build_layout({"kind": "hierarchical"}, [StreamSpec("voice", 4, 8, (1, 2, 3, 6))])
    places = layout.place({"voice": torch.tensor([60 * 8])})  # a minute
    assert torch.bincount(places.level[0]).tolist() == [480, 960, 1440, 2880]
    assert places.level[0].diff().min() == 0


@proves("spirit-lm", "mechanism")
def test_spirit_lm_words_switch_modality():
    """arXiv:2402.05755, section 3.1: [TEXT] words [SPEECH] units of other words [TEXT] …; each word in one of both."""
    streams = [StreamSpec("text"), StreamSpec("units", rate=25)]
    spec = {"kind": "interleaved", "by": "words", "words": ["text", "units"], "tags": {"text": 8, "units": 9}}
    given = Given(counts={
        "word/text": torch.tensor([[1, 2, 1, 1]]),  # the cat's sat down: 5 tokens
        "word/units": torch.tensor([[2, 3, 4, 1]]),
        "word/choice": torch.tensor([[0, 1, 1, 0]]),
    })
    assert picture(spec, streams, {"text": 5, "units": 10}, given) == [
        words("<8> t.0 <9> u.2 u.3 u.4 u.5 u.6 u.7 u.8 <8> t.4")]


@proves("sims", "mechanism")
def test_sims_spans_are_poisson_with_a_share_of_text():
    """arXiv:2504.02398: spans of Poisson(10) words; 30 % of the words as text. Rows choose by their own seeds."""
    streams = [StreamSpec("text"), StreamSpec("units", rate=25)]
    spec = {"kind": "interleaved", "by": "words", "words": ["text", "units"], "span": 10, "share": 0.3}
    layout = build_layout(spec, streams)
    number = 4000
    given = Given(counts={f"word/{s}": torch.ones(2, number, dtype=torch.int64) for s in ("text", "units")})
    lengths = {s: torch.full((2,), number) for s in ("text", "units")}
    places = layout.place(lengths, given, seed=torch.tensor([3, 4]))
    for row in range(2):
        mine = places.stream[row][places.valid[row]]
        share = float((mine == 0).float().mean())
        starts = int(((mine[1:] == 0) & (mine[:-1] == 1)).sum())
        assert 0.24 < share < 0.36
        assert 8.5 < share * number / starts < 11.5
    again = layout.place(lengths, given, seed=torch.tensor([4, 4]))
    assert torch.equal(again.stream[0][: places.columns[1]], places.stream[1][: places.columns[1]])
    assert not torch.equal(places.stream[0], places.stream[1])


@proves("ella-v", "mechanism")
def test_ella_v_phones_before_their_codes():
    """arXiv:2401.07333, section 3.2: each phone, its codes, end of phone; local advance moves phones ahead (3.4)."""
    streams = [StreamSpec("phones", given=True), StreamSpec("voice", rate=75)]
    given = Given(counts={"word/voice": torch.tensor([[3, 1, 2]])})
    spec = {"kind": "text-aligned", "text": "phones", "voice": "voice", "close": 4}
    assert picture(spec, streams, {"phones": 3, "voice": 6}, given) == [
        words("p.0 v.0 v.1 v.2 <4> p.1 v.3 <4> p.2 v.4 v.5 <4>")]
    advanced = {"kind": "text-aligned", "text": "phones", "advance": 2}
    assert picture(advanced, streams, {"phones": 3, "voice": 6}, given) == [
        words("p.0 v.0 p.1 v.1 p.2 v.2 v.3 v.4 v.5")]


@proves("lm/taste", "mechanism")
def test_taste_one_speech_token_for_each_text_token():
    """arXiv:2504.07053: 4 residual levels for every text token stand in its column."""
    layout = build_layout({"kind": "text-aligned", "form": "columns"}, [StreamSpec("text"), StreamSpec("voice", 4)])
    places = layout.place({"text": torch.tensor([3]), "voice": torch.tensor([3])})
    assert places.columns.tolist() == [3] and places.lanes == 5
    assert places.index_grid()[0, :, :, 2].tolist() == [[0, 1, 2]] * 5


@proves("syncllm", "mechanism")
def test_syncllm_chunks():
    """arXiv:2409.15594, section 3: chunks of 160 ms at 25 Hz of both speakers, tagged, deduplicated inside a chunk."""
    streams = [StreamSpec("model", rate=25), StreamSpec("person", rate=25)]
    spec = {"kind": "time-multiplexed", "order": ["model", "person"], "chunk": 0.16,
            "tags": {"model": 0, "person": 1}, "dedup": ["model", "person"]}
    given = Given(values={"model": torch.tensor([[1, 1, 2, 2, 2, 2, 2, 2]]), "person": torch.tensor([[5] * 8])})
    assert picture(spec, streams, {"model": 8, "person": 8}, given) == [
        words("<0> m.0 m.2 <1> p.0 <0> m.4 <1> p.4")]


@proves("omniflatten", "mechanism")
def test_omniflatten_chunks():
    """arXiv:2410.17799, section 3.4: user speech, then 2 text and 10 speech tokens of the assistant, chunk by chunk."""
    streams = [StreamSpec("user", rate=50, given=True), StreamSpec("text"), StreamSpec("voice", rate=50)]
    layout = build_layout({"kind": "time-multiplexed", "user": 10, "text": 2, "voice": 10}, streams)
    places = layout.place({"user": torch.tensor([20]), "text": torch.tensor([4]), "voice": torch.tensor([20])})
    assert "".join("utv"[s] for s in places.stream[0].tolist()) == ("u" * 10 + "tt" + "v" * 10) * 2
    state = layout.start(1)  # live, it never ends
    for n in range(100):
        column, state = layout.next(torch.zeros(1, 1, dtype=torch.int64), state)
        assert not bool(column.done) and int(column.stream) == ([0] * 10 + [1] * 2 + [2] * 10)[n % 22]


@proves("dgslm", "mechanism")
def test_dgslm_two_channels_with_delayed_durations():
    """arXiv:2203.16502, section 3.3: both channels side by side; each edge unit's duration one step after it."""
    streams = [StreamSpec(name) for name in ("left", "left_duration", "right", "right_duration")]
    spec = {"kind": "multi-stream", "delays": {"left_duration": 1, "right_duration": 1}}
    layout = build_layout(spec, streams)
    assert [layout.delays[s.name] for s in streams] == [[0], [1], [0], [1]]
    index = layout.place({s.name: torch.tensor([3]) for s in streams}).index_grid()[0, :, :, 2].tolist()
    assert index == [[0, 1, 2, -1], [-1, 0, 1, 2]] * 2


@proves("pgslm", "mechanism")
def test_pgslm_prosody_one_step_later():
    """arXiv:2109.03264, section 3.2: duration and pitch of a unit are predicted one step after it."""
    streams = [StreamSpec("units"), StreamSpec("duration"), StreamSpec("pitch")]
    layout = build_layout({"kind": "multi-stream", "delays": {"duration": 1, "pitch": 1}}, streams)
    assert layout.place({s.name: torch.tensor([5]) for s in streams}).columns.tolist() == [6]


@proves("kimi-audio", "mechanism")
def test_kimi_audio_starts_six_tokens_late():
    """arXiv:2504.18425: text and audio in parallel, the audio 6 tokens behind."""
    layout = build_layout({"kind": "multi-stream", "delays": {"voice": 6}}, [StreamSpec("text"), StreamSpec("voice")])
    places = layout.place({"text": torch.tensor([4]), "voice": torch.tensor([10])})
    voice = places.stream[0] == 1
    assert places.column[0, voice].tolist() == list(range(6, 16))


def test_slam_omni_groups_of_three():
    """arXiv:2412.15649: three 50 Hz semantic tokens in each step beside one text token."""
    layout = build_layout({"kind": "parallel", "clock": 50 / 3}, [StreamSpec("text"), StreamSpec("voice", rate=50)])
    assert layout.lanes == 4
    places = layout.place({"text": torch.tensor([2]), "voice": torch.tensor([6])})
    assert places.index_grid()[0, :, :, 2].tolist() == [[0, 1], [0, 3], [1, 4], [2, 5]]


def test_turns_of_a_dialogue_the_last_one_open():
    """Earlier turns are known, the answer ends with its end token: what `reply` of a turn-based system does."""
    streams = [StreamSpec("user", given=True), StreamSpec("text", end=9), StreamSpec("voice", end=99)]
    layout = build_layout({"kind": "template", "order": [{"turns": [
        1, "user", 2, {"kind": "interleaved", "text": 1, "voice": 2}]}]}, streams)
    given = Given(
        counts={"turn/user": torch.tensor([[2, 1]]), "turn/text": torch.tensor([[1, OPEN]]),
                "turn/voice": torch.tensor([[1, OPEN]])},
        known={"text": torch.tensor([1]), "voice": torch.tensor([1])})
    state, seen, filled = layout.start(1, {"user": torch.tensor([3])}, given), [], None
    says = {("text", 1): 4, ("text", 2): 9, ("voice", 3): 99}
    while True:
        column, state = layout.next(filled, state)
        if bool(column.done):
            break
        stream, index = int(column.stream), int(column.index)
        name = streams[stream].name if stream >= 0 else "<"
        seen.append(f"{name[0]}{index}" + ("*" if bool(column.fill) else ""))
        filled = torch.tensor([[says.get((name, index), 0)]])
    assert seen == words("<1 u0 u1 <2 t0 v0 <1 u2 <2 t1* v1* v2* t2* v3*")


@proves("voicecraft", "mechanism")
def test_voicecraft_moves_the_spans_to_edit_to_the_end():
    """arXiv:2403.16973, section 3.1: Y1 <M> Y3, then <M> Y2: the span to be written stands behind its whole context,
    and every piece has its codebooks delayed. Context and edit are two streams of one tokenizer."""
    streams = [StreamSpec("context", 2, 50, given=True), StreamSpec("edit", 2, 50, end=9)]
    context, edit = ({"kind": "delay", "streams": [name]} for name in ("context", "edit"))
    spec = {"kind": "template", "order": [{"turns": [context, 7]}, context, {"turns": [7, edit]}]}
    given = Given(counts={"turn/context": torch.tensor([[2]]), "turn/edit": torch.tensor([[2]])})
    assert picture(spec, streams, {"context": 3, "edit": 2}, given) == [
        words("c0.0 c0.1 . <7> c0.2 . <7> e0.0 e0.1 ."), words(". c1.0 c1.1 . . c1.2 . . e1.0 e1.1")]
    # In generation the model decides how long the span is.
    given = Given(counts={"turn/context": torch.tensor([[2]]), "turn/edit": torch.tensor([[OPEN]])})
    layout = build_layout(spec, streams)
    state, filled, columns = layout.start(1, {"context": torch.tensor([3])}, given), None, []
    while True:
        column, state = layout.next(filled, state)
        if bool(column.done):
            break
        columns.append("".join("ce"[s] if s >= 0 else "M" if s == -2 else "." for s in column.stream[0].tolist()))
        filled = torch.tensor([[9 if len(columns) == 10 else 0, 0]])
    assert columns == words("c. cc .c M. c. .c M. e. ee ee .e")


@proves("csm", "mechanism")
def test_csm_text_frames_and_audio_frames():
    """SesameAILabs/csm, generator.py: frames of 33 lanes; a turn's text has the last lane, its audio the others."""
    streams = [StreamSpec("voice", 32, 12.5), StreamSpec("text", given=True)]
    layout = build_layout({"kind": "template", "lanes": "own", "order": [
        {"turns": ["text", {"kind": "parallel", "streams": ["voice"]}]}]}, streams)
    assert layout.lanes == 33 and layout.lane_of("text") == 32
    given = Given(counts={"turn/text": torch.tensor([[2, 1]]), "turn/voice": torch.tensor([[3, 1]])})
    places = layout.place({"text": torch.tensor([3]), "voice": torch.tensor([4])}, given)
    assert places.mask("index")[0, 32].tolist() == [0, 1, -1, -1, -1, 2, -1]
    assert places.mask("index")[0, 31].tolist() == [-1, -1, 0, 1, 2, -1, 3]
