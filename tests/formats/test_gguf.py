"""Reading GGUF: what is sound opens; what is not is refused by name, at once."""

import os
import struct

import numpy as np
import pytest

from bitnet import formats
from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.formats.gguf_codecs import encode
from bitnet.quant.tensor import TernaryTensor

HUGE = 1 << 63


def packed(shape=(2, 128), scale=0.5):
    return bytes([0b01101001]) * (np.prod(shape) // 4) + struct.pack("<f", scale) + b"\xee" * 28


@pytest.fixture
def sound(gguf_bytes):
    """A file with one I2_S and one F32 tensor, and a metadata value of every type."""
    b = gguf_bytes
    scalars = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
    pairs = [b.text("general.architecture", "bitnet-b1.58"), b.text("empty", "")]
    pairs += [b.pair(f"scalar.{kind}", kind, struct.pack(code, 1)) for kind, code in scalars.items()]
    pairs += [b.array(f"array.{kind}", kind, 2, struct.pack(code, 1) * 2) for kind, code in scalars.items()]
    pairs += [b.array("texts", 8, 3, b.string("a") + b.string("") + b.string("é\0")), b.array("none", 8, 0)]
    infos = [b.info("blk.0.attn_q.weight", (128, 2), 36, 0), b.info("output_norm.weight", (3,), 0, 96)]
    return b(pairs=pairs, infos=infos, data=packed() + struct.pack("<3f", 1, 2, 3))


def test_a_sound_file_is_read(save, sound):
    with formats.open(save(sound.whole())) as checkpoint:
        assert (checkpoint.kind, checkpoint.architecture, checkpoint.version) == ("gguf", "bitnet-b1.58", 3)
        assert list(checkpoint.tensors()) == ["blk.0.attn_q.weight", "output_norm.weight"]
        info = checkpoint.tensors()["blk.0.attn_q.weight"]
        assert (info.shape, info.dtype, info.nbytes) == ((2, 128), "I2_S", 96)
        weight = checkpoint.read("blk.0.attn_q.weight")
        assert weight.scales == np.float32(0.5)
        assert weight.codes.tolist() == [[0] * 32 + [1] * 32 + [1] * 32 + [0] * 32] * 2
        assert checkpoint.read("output_norm.weight").data.tolist() == [1, 2, 3]


def test_metadata_comes_back_as_plain_values(save, sound):
    metadata = formats.open(save(sound.whole())).metadata
    assert metadata["texts"] == ["a", "", "é\0"] and metadata["none"] == [] and metadata["empty"] == ""
    assert [metadata[f"scalar.{kind}"] for kind in range(7)] == [1] * 7
    assert metadata["scalar.7"] is True and metadata["array.7"] == [True, True]
    assert metadata["array.12"] == [1.0, 1.0]


def test_version_2_is_the_same_layout(save, sound):
    sound.version = 2
    assert formats.open(save(sound.whole())).version == 2


def test_the_alignment_of_the_file_is_followed(save, gguf_bytes):
    b = gguf_bytes
    pairs = [b.text("general.architecture", "llama"), b.pair("general.alignment", 4, struct.pack("<I", 64))]
    file = b(pairs=pairs, infos=[b.info("a", (1,), 0, 0), b.info("b", (1,), 0, 64)])
    header = file.header()
    whole = header + bytes(-len(header) % 64) + struct.pack("<f", 1) + bytes(60) + struct.pack("<f", 2)
    assert formats.open(save(whole)).read("b").data[0] == 2


def test_a_vocabulary_of_150000_is_read(save, gguf_bytes):
    b = gguf_bytes
    tokens = b"".join(b.string(f"token{i}") for i in range(150_000))
    path = save(b(pairs=[b.text("general.architecture", "x"), b.array("tokens", 8, 150_000, tokens)]).whole())
    metadata = formats.open(path).metadata
    assert metadata["tokens"][149_999] == "token149999"


def test_every_cut_of_the_header_is_refused(save, sound):
    whole = sound.whole()
    for length in range(1, len(sound.header())):
        with pytest.raises(FormatError):
            formats.open(save(whole[:length]))


def test_every_cut_of_the_data_is_refused(save, sound):
    whole = sound.whole()
    for length in range(len(sound.header()), len(whole)):
        with pytest.raises(FormatError, match="cut short"):
            formats.open(save(whole[:length]))


@pytest.mark.parametrize(
    "version, says", [(0, "version 0"), (1, "version 1"), (99, "version 99"), (3 << 24, "big-endian"), (2 << 24, "big")]
)
def test_other_versions_are_refused_by_name(save, sound, version, says):
    sound.version = version
    with pytest.raises(UnsupportedError, match=says):
        formats.open(save(sound.whole()))


@pytest.mark.parametrize("field", ["tensor_count", "pair_count"])
@pytest.mark.parametrize("count", [10_000, HUGE, 2**64 - 1])
def test_counts_that_the_file_cannot_hold_are_refused(save, sound, field, count):
    setattr(sound, field, count)
    with pytest.raises(FormatError, match="left"):
        formats.open(save(sound.whole()))


def u32(value):
    return struct.pack("<I", value)


BAD_PAIRS = {
    "a key longer than the file": (lambda b: b.string("key", HUGE) + u32(4) + u32(1), "metadata key"),
    "an empty key": (lambda b: b.pair("", 4, u32(1)), "metadata key"),
    "a key with NUL": (lambda b: b.pair("a\0b", 4, u32(1)), "control characters"),
    "a key that is not UTF-8": (lambda b: b.pair(b"\xff\xfe", 4, u32(1)), "UTF-8"),
    "a key of 70000 bytes": (lambda b: b.pair("k" * 70_000, 4, u32(1)), "65,535"),
    "a string longer than the file": (lambda b: b.pair("k", 8, b.string("abc", HUGE)), "k would take"),
    "a string that is not UTF-8": (lambda b: b.text("k", b"\xc3\x28"), "k is not UTF-8"),
    "a key that occurs twice": (lambda b: b.text("k", "1") + b.text("k", "2"), "'k' occurs twice"),
    "an unknown type": (lambda b: b.pair("k", 13, u32(1)), "value type 13"),
    "an unknown element type": (lambda b: b.array("k", 200, 1, u32(1)), "element type 200"),
    "an array of arrays": (lambda b: b.array("k", 9, 1, struct.pack("<IQ", 4, 0)), "array of arrays"),
    "arrays nested 100000 deep": (lambda b: b.array("k", 9, 1, struct.pack("<IQ", 9, 1) * 100_000), "array of arrays"),
    "an array longer than the file": (lambda b: b.array("k", 4, 1000, u32(1)), "k would take"),
    "an array of 2^63": (lambda b: b.array("k", 4, HUGE), "elements"),
    "an array of 2^63 strings": (lambda b: b.array("k", 8, HUGE), "elements"),
    "an array of 10^6 strings": (lambda b: b.array("k", 8, 1_000_000), "would take"),
    "an element longer than the file": (lambda b: b.array("k", 8, 2, b.string("a") + b.string("b", HUGE)), r"k\[1\]"),
    "an element that is not UTF-8": (lambda b: b.array("k", 8, 2, b.string("a") + b.string(b"\xff")), r"k\[1\] is not"),
    "a boolean that is 2": (lambda b: b.pair("k", 7, b"\x02"), "boolean 2"),
    "a boolean element that is 9": (lambda b: b.array("k", 7, 2, b"\x01\x09"), "boolean 9"),
    "alignment 0": (lambda b: b.pair("general.alignment", 4, u32(0)), "alignment is 0"),
    "alignment 3": (lambda b: b.pair("general.alignment", 4, u32(3)), "alignment is 3"),
    "alignment 2^31": (lambda b: b.pair("general.alignment", 4, u32(1 << 31)), "alignment is 2147483648"),
    "a text as alignment": (lambda b: b.text("general.alignment", "32"), "alignment is '32'"),
    "a part of a split file": (lambda b: b.pair("split.count", 2, b"\x03\0"), "one part of 3"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_metadata_is_refused(save, gguf_bytes, sound, case):
    make, says = BAD_PAIRS[case]
    sound.pairs.append(make(gguf_bytes))
    sound.pair_count = len(sound.pairs) + (case == "a key that occurs twice")
    with pytest.raises((FormatError, UnsupportedError), match=says):
        formats.open(save(sound.whole()))


@pytest.mark.parametrize("pair", [("other", 8, b"\0" * 8), ("general.architecture", 4, b"\1\0\0\0")])
def test_a_file_without_an_architecture_is_refused(save, gguf_bytes, pair):
    with pytest.raises(FormatError, match="architecture"):
        formats.open(save(gguf_bytes(pairs=[gguf_bytes.pair(*pair)]).whole()))


BAD_INFOS = {
    "an empty name": (lambda b: b.info("", (3,), 0, 96), "tensor name"),
    "a name of 2000 bytes": (lambda b: b.info("x" * 2000, (3,), 0, 96), "tensor name"),
    "a name with NUL": (lambda b: b.info("a\0", (3,), 0, 96), "control"),
    "a name that occurs twice": (lambda b: b.info("blk.0.attn_q.weight", (3,), 0, 96), "occurs twice"),
    "no dimensions": (lambda b: b.info("x", (), 0, 96), "0 dimensions"),
    "five dimensions": (lambda b: b.info("x", (1,) * 5, 0, 96), "5 dimensions"),
    "2^31 dimensions": (lambda b: b.info("x", (3,), 0, 96, n_dims=1 << 31), "dimensions"),
    "a dimension 0": (lambda b: b.info("x", (0, 3), 0, 96), "product"),
    "a product over 2^64": (lambda b: b.info("x", (1 << 33, 1 << 33), 0, 96), "product"),
    "a product that wraps to 3": (lambda b: b.info("x", ((1 << 64) - 1, (1 << 64) - 3), 0, 96), "product"),
    "an unknown type": (lambda b: b.info("x", (3,), 77, 96), "x has the tensor type 77"),
    "TL1 that is no matrix": (lambda b: b.info("x", (256,), 38, 96), r"\(256,\) in TL1, which takes matrices"),
    "a row that is no multiple of the block": (lambda b: b.info("x", (8640, 1), 35, 96), "multiples of 256"),
    "an offset beyond the end": (lambda b: b.info("x", (3,), 0, 1 << 40), "cut short"),
    "an offset that wraps": (lambda b: b.info("x", (3,), 0, (1 << 64) - 32), "cut short"),
    "an offset that is not aligned": (lambda b: b.info("x", (3,), 0, 97), "multiple of 32"),
    "data of another tensor": (lambda b: b.info("x", (3,), 0, 64), "overlaps"),
}


@pytest.mark.parametrize("case", BAD_INFOS)
def test_a_bad_tensor_is_refused(save, gguf_bytes, sound, case):
    make, says = BAD_INFOS[case]
    sound.infos[1] = make(gguf_bytes)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        formats.open(save(sound.whole()))


def test_type_36_of_another_program_is_refused_by_its_size(save, gguf_bytes):
    iq4_nl_4_4 = 2 * 256 // 32 * 18  # 288 bytes, where I2_S takes 160
    infos = [gguf_bytes.info("blk.0.w", (256, 2), 36, 0), gguf_bytes.info("norm", (3,), 0, iq4_nl_4_4)]
    pairs = [gguf_bytes.text("general.architecture", "llama")]
    with pytest.raises(UnsupportedError, match=r"blk.0.w has the tensor type 36 and 288 bytes; I2_S takes 160"):
        formats.open(save(gguf_bytes(pairs=pairs, infos=infos, data=bytes(iq4_nl_4_4 + 12)).whole()))


TERNARY_WEIGHT = TernaryTensor(np.random.default_rng(0).integers(-1, 2, (33, 256)).astype(np.int8), np.float32(0.5))


def test_type_42_of_before_llama_cpp_is_known_by_its_size(save, gguf_bytes):
    for dtype in ("Q2_0", "PQ2_0"):
        data = encode(TERNARY_WEIGHT, dtype).tobytes()
        data += bytes(-len(data) % 32)
        infos = [gguf_bytes.info("a", (256, 33), 42, 0), gguf_bytes.info("b", (256, 33), 42, len(data))]
        for last in (data, encode(TERNARY_WEIGHT, dtype).tobytes()):  # some writers do not pad the end
            with formats.open(save(gguf_bytes(infos=infos, data=data + last).whole())) as checkpoint:
                for name in "ab":
                    assert checkpoint.tensors()[name].dtype == dtype
                    assert (checkpoint.read(name).codes == TERNARY_WEIGHT.codes).all()


def test_type_42_of_no_known_size_is_refused(save, gguf_bytes):
    infos = [gguf_bytes.info("a", (256, 33), 42, 0), gguf_bytes.info("norm", (3,), 0, 2432)]
    with pytest.raises(UnsupportedError, match=r"a has the tensor type 42 and 2,432 bytes; Q2_0 takes 2,376"):
        formats.open(save(gguf_bytes(infos=infos, data=bytes(2444)).whole()))
    infos = [gguf_bytes.info("a", (256, 33), 42, 0), gguf_bytes.info("norm", (3,), 0, 2208)]
    with pytest.raises(FormatError, match="overlaps"):
        formats.open(save(gguf_bytes(infos=infos, data=bytes(4000)).whole()))


def test_a_number_with_another_meaning_is_refused_by_its_size(save, gguf_bytes):
    infos = [gguf_bytes.info("a", (256, 33), 143, 0), gguf_bytes.info("norm", (3,), 0, 33 * 66 + 30)]
    with pytest.raises(UnsupportedError, match=r"type 143 and 2,208 bytes; PTQ1_0 takes 1,848.\n.*IQ1_TN"):
        formats.open(save(gguf_bytes(infos=infos, data=bytes(2220)).whole()))


def test_a_known_type_that_is_not_decoded_is_named_when_it_is_read(save, gguf_bytes):
    path = save(gguf_bytes(infos=[gguf_bytes.info("token_embd.weight", (256, 2), 10, 0)], data=bytes(168)).whole())
    with formats.open(path) as checkpoint, pytest.raises(UnsupportedError, match=r"token_embd.weight is Q2_K.*TQ2_0"):
        checkpoint.read("token_embd.weight")


def test_a_bad_scale_names_the_tensor(save, gguf_bytes):
    path = save(gguf_bytes(infos=[gguf_bytes.info("w", (128, 2), 36, 0)], data=packed(scale=float("nan"))).whole())
    with formats.open(path) as checkpoint, pytest.raises(FormatError, match=r"model.gguf: w has the scale nan"):
        checkpoint.read("w")


def test_a_bad_code_names_the_tensor(save, gguf_bytes):
    data = b"\xff" + packed()[1:]
    path = save(gguf_bytes(infos=[gguf_bytes.info("w", (128, 2), 36, 0)], data=data).whole())
    with formats.open(path) as checkpoint, pytest.raises(FormatError, match=r"model.gguf: w holds the ternary code 3"):
        checkpoint.read("w")


def test_a_missing_tensor_is_named(save, sound):
    with formats.open(save(sound.whole())) as checkpoint, pytest.raises(ShapeError, match="no tensor nope"):
        checkpoint.read("nope")


def test_a_file_cut_short_while_open_is_an_error_and_not_a_crash(save, sound):
    path = save(sound.whole())
    with formats.open(path) as checkpoint:
        os.truncate(path, 64)
        with pytest.raises(FormatError, match="when it was opened"):
            checkpoint.read("output_norm.weight")


def test_tensors_outlive_the_checkpoint_and_the_file(save, sound):
    path = save(sound.whole())
    with formats.open(path) as checkpoint:
        norm = checkpoint.read("output_norm.weight")
    os.truncate(path, 0)
    assert norm.data.tolist() == [1, 2, 3]


def test_a_closed_checkpoint_says_so(save, sound):
    checkpoint = formats.open(save(sound.whole()))
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(FormatError, match="closed"):
        checkpoint.read("output_norm.weight")
