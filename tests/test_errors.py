from tarkit.errors import UserError


def test_the_text_of_an_error_is_the_message_and_then_the_next_command() -> None:
    error = UserError("work/x has no shards", hint="tarkit curate render --out work/x")
    assert str(error) == "work/x has no shards\ntarkit curate render --out work/x"
    assert error.message == "work/x has no shards"
    assert str(UserError("alone")) == "alone"
