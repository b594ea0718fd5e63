"""What a stream shows is what decoding everything at once shows, and never half a character."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet.tokenizer import StreamDecoder

lenient = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@lenient
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_the_decoded_text_for_any_ids(trio, data, skip):
    ids = data.draw(st.lists(st.integers(0, trio.folder.vocab_size - 1), max_size=40))
    stream = StreamDecoder(trio.folder, skip_special=skip)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == trio.folder.decode(ids, skip_special=skip)


@lenient
@given(text=st.text(max_size=30))
def test_text_is_streamed_in_whole_characters(trio, text):
    ids = trio.folder.encode(text)
    stream = StreamDecoder(trio.folder)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == trio.folder.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_an_emoji_in_four_tokens_comes_out_once(llama3):
    ids = llama3.encode("🦊", add_special=False)
    stream = StreamDecoder(llama3)
    assert len(ids) > 1 and [*map(stream.push, ids)] == [""] * (len(ids) - 1) + ["🦊"]


def test_an_unfinished_character_is_replaced_at_the_end(llama3):
    stream = StreamDecoder(llama3)
    assert stream.push(llama3.encode("🦊", add_special=False)[0]) == "" and stream.flush() == "\ufffd"


def test_the_space_before_a_text_can_be_kept(sentencepiece):
    ids = sentencepiece.encode("fox", add_special=False)
    kept = StreamDecoder(sentencepiece, strip_space=False)
    assert "".join(map(kept.push, ids)) == " fox" and sentencepiece.decode(ids) == "fox"
