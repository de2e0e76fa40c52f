"""Prompts: where worked examples and candidates stand."""

from semievol.prompts import Message, question_of, with_candidates, with_worked_examples

SYSTEM, ASK = Message("system", "Be brief."), Message("user", "Q?")


def test_worked_examples_come_after_the_system_message_and_before_the_question_in_the_order_given() -> None:
    prompt = with_worked_examples((SYSTEM, ASK), [("far", "a"), ("near", "b")])
    assert [(turn.role, turn.content) for turn in prompt] == [
        ("system", "Be brief."),
        ("user", "far"),
        ("assistant", "a"),
        ("user", "near"),
        ("assistant", "b"),
        ("user", "Q?"),
    ]


def test_no_worked_examples_leave_the_prompt_as_it_is() -> None:
    assert with_worked_examples((SYSTEM, ASK), []) == (SYSTEM, ASK)


def test_candidates_are_numbered_after_the_question_and_the_earlier_turns_stay() -> None:
    prompt = with_candidates((SYSTEM, ASK), ["yes, since {x}", "no %s"])
    assert prompt[0] == SYSTEM
    assert prompt[1].role == "user"
    assert prompt[1].content.splitlines()[:4] == ["Q?", "Candidate answers:", "1. yes, since {x}", "2. no %s"]


def test_the_question_is_the_last_user_turn() -> None:
    assert question_of((SYSTEM, Message("user", "first"), Message("assistant", "a"), ASK)) == "Q?"
