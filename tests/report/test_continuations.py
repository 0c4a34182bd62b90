from bc2.generate.prompts import PromptRequest
from bc2.generate.requests import Continuation, Generated, TokenLogProb
from bc2.report.continuations import answer_row, finish_reason, shown_answer

EOS = 2


class Pieces:
    eos_id = EOS

    def shown_piece(self, token):
        return ["<unk>", "<s>", "</s>", "▁a", "\n", "<0xE6>"][token]


def answer(*made):
    return Generated(4, PromptRequest([3], text="a"), list(made), 0)


def test_the_reason_is_eos_for_the_end_of_text_alone():
    assert finish_reason(Continuation([], "stop_id", stop_id=EOS), EOS) == "eos"
    assert finish_reason(Continuation([], "stop_id", stop_id=3), EOS) == "stop_id"
    for reason in ("stop", "length"):
        assert finish_reason(Continuation([], reason), EOS) == reason
        # A tokenizer without an end of text.
        assert finish_reason(Continuation([], reason), -1) == reason


def test_a_row_has_all_that_is_known():
    numbers = [TokenLogProb(-1.5, 0.0, ((3, -1.0), (4, -1.5)))]
    end = TokenLogProb(-0.5, -0.25)
    made = Continuation([4], "stop_id", b"\n\xe6", numbers, end, EOS)
    assert answer_row(answer(made), Pieces()) == {
        "index": 4,
        "prompt": "a",
        "text": "\n\ufffd",
        "tokens": 1,
        "finish_reason": "eos",
        "log_probs": [
            {
                "id": 4,
                "piece": "\n",
                "raw": -1.5,
                "drawn": 0.0,
                "top": [
                    {"id": 3, "piece": "▁a", "raw": -1.0},
                    {"id": 4, "piece": "\n", "raw": -1.5},
                ],
            }
        ],
        "end_log_prob": {"id": EOS, "piece": "</s>", "raw": -0.5, "drawn": -0.25, "top": []},
    }


def test_a_row_without_log_probabilities():
    row = answer_row(answer(Continuation([4], "length", b"b")), Pieces())
    assert row == {"index": 4, "prompt": "a", "text": "b", "tokens": 1, "finish_reason": "length"}


def test_several_continuations():
    made = [Continuation([3], "length", text) for text in (b"b", b"c")]
    row = answer_row(answer(*made), Pieces())
    assert row["text"] == "b"
    assert [one["text"] for one in row["continuations"]] == ["b", "c"]
    assert shown_answer(answer(*made), Pieces()) == [
        "[prompt 4, 1 of 2: 1 token, length]",
        "ab",
        "[prompt 4, 2 of 2: 1 token, length]",
        "ac",
    ]


def test_the_table_shows_the_token_that_ended_it_and_control_characters_escaped():
    end = TokenLogProb(-0.5, -0.25, ((EOS, -0.5),))
    number = TokenLogProb(-1.5, 0.0, ((5, -1.0),))
    _, table = shown_answer(
        answer(Continuation([4], "stop_id", b"\n", [number], end, EOS)), Pieces()
    )
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells == [
        ["\\n", "</s>"],
        ["4", "2"],
        ["-1.5000", "-0.5000"],
        ["0.0000", "-0.2500"],
        ["<0xE6> -1.00", "</s> -0.50"],
    ]
