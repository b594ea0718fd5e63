"""`bitnet bench`: llama-bench's fields and columns, and ours beside them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Bitnet = Callable[..., subprocess.CompletedProcess[str]]
LLAMA_BENCH = (
    "build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch "
    "n_ubatch n_threads type_k type_v n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts"
)
FAST = ("-p", "8", "-n", "3", "-r", "2")


def measured(bitnet: Bitnet, *arguments: object) -> list[dict[str, Any]]:
    result = bitnet("bench", *arguments, "-o", "json")
    assert result.returncode == 0, result.stderr
    return list(json.loads(result.stdout))


def test_json_has_llama_benchs_fields_in_its_order(bitnet: Bitnet) -> None:
    for found in measured(bitnet, *FAST):
        assert " ".join(found).startswith(LLAMA_BENCH + " samples_ns samples_ts ")
        assert len(found["samples_ns"]) == len(found["samples_ts"]) == 2
        assert abs(found["avg_ns"] - sum(found["samples_ns"]) / 2) <= 1


def test_prompts_and_generation_are_tests_of_their_own_at_every_depth(bitnet: Bitnet) -> None:
    found = measured(bitnet, "-p", "4,8", "-n", "2", "-d", "0", "-d", "5", "-r", "1")
    shape = [(t["n_prompt"], t["n_gen"], t["n_depth"]) for t in found]
    assert shape == [(4, 0, 0), (8, 0, 0), (0, 2, 0), (4, 0, 5), (8, 0, 5), (0, 2, 5)]


def test_decoding_tells_the_bytes_it_moves(bitnet: Bitnet) -> None:
    prompt, decode = measured(bitnet, *FAST)
    assert prompt["bytes_per_token"] is None
    assert decode["bytes_per_token"] > 0
    assert abs(decode["gb_per_s"] - decode["bytes_per_token"] * decode["avg_ts"] / 1e9) < 1e-3 * decode["gb_per_s"]


def test_markdown_is_the_default(bitnet: Bitnet) -> None:
    lines = bitnet("bench", *FAST).stdout.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:8]] == [
        "model", "size", "params", "backend", "threads", "test", "t/s"
    ]  # fmt: skip
    assert "pp8" in lines[2] and "tg3" in lines[3] and "±" in lines[3] and "#" in lines[3]


def test_csv_and_json_lines_hold_a_record_a_test(bitnet: Bitnet) -> None:
    rows = list(csv.DictReader(io.StringIO(bitnet("bench", *FAST, "-o", "csv").stdout)))
    assert [row["n_prompt"] for row in rows] == ["8", "0"] and "samples_ns" not in rows[0]
    lines = bitnet("bench", *FAST, "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["n_gen"] for line in lines] == [0, 3]


def test_a_synthetic_model_computes_the_same_in_memory_and_from_its_file(bitnet: Bitnet, tmp_path: Path) -> None:
    path = tmp_path / "synthetic.gguf"
    assert bitnet("bench", "--synthetic", "tiny", "--write", path).returncode == 0
    file = measured(bitnet, "-m", path, *FAST)
    memory = bitnet("bench", "--synthetic", "TINY", *FAST, "-o", "json")
    assert [t["logits_hash"] for t in file] == [t["logits_hash"] for t in json.loads(memory.stdout)]


def test_several_models_in_one_run_and_their_results_again(bitnet: Bitnet, tmp_path: Path) -> None:
    path, picture = tmp_path / "results.json", tmp_path / "roofline.svg"
    arguments = ("bench", "--synthetic", "tiny", "--synthetic", "Tiny,TINY", *FAST)
    path.write_text(bitnet(*arguments, "-o", "json").stdout)
    assert [(t["model"], t["n_gen"]) for t in json.loads(path.read_text())] == [("tiny", 0), ("tiny", 3)] * 3
    again = bitnet("bench", "--from", path, "-o", "json")
    assert json.loads(again.stdout) == json.loads(path.read_text())
    pytest.importorskip("matplotlib")
    drawn = bitnet("bench", "--from", path, "--plot", picture)
    assert drawn.returncode == 0, drawn.stderr
    assert "tg3" in drawn.stdout and "<svg" in picture.read_text()
    refused = bitnet("bench", "--from", path, "--plot", picture)
    assert refused.returncode == 2 and "exists" in refused.stderr


def test_a_peer_that_is_not_installed_is_named_and_left_out(bitnet: Bitnet, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')  # without site-packages
    python.chmod(0o755)
    found = measured(bitnet, *FAST, "--peers", "llama.cpp", "--peer-python", f"llama.cpp={python}")
    assert [t["engine"] for t in found] == ["bitnet"] * 2
    assert all(f"llama.cpp was left out: {python} lacks it" in t["notes"][0] for t in found)
    assert bitnet("bench", "--peers", "vllm").returncode == 2


def test_latencies_memory_and_conditions_are_in_every_record(bitnet: Bitnet) -> None:
    prompt, decode = measured(bitnet, *FAST)
    assert prompt["p50_ms"] is None and 0 < decode["p50_ms"] <= decode["p95_ms"] <= decode["p99_ms"]
    for t in (prompt, decode):
        assert t["first_token_ms"] > 0 and t["load_s"] > 0 and t["weights_bytes"] > 0 and t["kv_cache_bytes"] > 0
        assert t["options"]["repetitions"] == 2 and t["engine"] == "bitnet" and t["engine_version"] == t["build_commit"]


def test_a_screened_head_reads_less_and_computes_the_same(bitnet: Bitnet) -> None:
    full, screened = (
        measured(bitnet, "-p", "0", "-n", "3", "-r", "2", "--head", head)[0] for head in ("full", "screen")
    )
    assert (full["head"], screened["head"]) == ("full", "screen")
    assert full["logits_hash"] == screened["logits_hash"] and screened["bytes_per_token"] < full["bytes_per_token"]


def test_weights_and_kernels_are_chosen_and_compute_the_same(bitnet: Bitnet) -> None:
    found = [
        measured(bitnet, "-p", "0", "-n", "3", "-r", "1", *chosen)[0]
        for chosen in (["--weights", "2bit"], ["--weights", "1.6bit"], ["--kernel", "tl1"], ["--kernel", "tl2"])
    ]
    assert [each["weights"] for each in found] == ["2bit", "1.6bit", "tl1", "tl2"]
    assert len({each["logits_hash"] for each in found}) == 1


def test_the_environment_chooses_as_well(bitnet: Bitnet) -> None:
    chosen = bitnet("bench", "-p", "0", "-n", "2", "-r", "1", "-o", "json", BITNET_WEIGHTS="1.6bit")
    assert json.loads(chosen.stdout)[0]["weights"] == "1.6bit"


def test_wrong_lists_formats_and_names_are_refused(bitnet: Bitnet) -> None:
    for arguments in (
        ["-p", "1,x"],
        ["-n", "-1"],
        ["-o", "xml"],
        ["-p", "9", "--ctx-size", "8"],
        ["--kv", "f8"],
        ["--head", "half"],
        ["--weights", "3bit"],
        ["--kernel", "tl3"],
        ["--weights", "1.6bit", "--kernel", "tl2"],
    ):
        assert bitnet("bench", *arguments).returncode == 2, arguments
    assert bitnet("bench", "--synthetic", "9000B").returncode == 2


def test_a_file_is_not_replaced_unasked(bitnet: Bitnet, tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    refused = bitnet("bench", "--synthetic", "tiny", "--write", path)
    assert (refused.returncode, path.read_text()) == (2, "precious")
    assert bitnet("bench", "--synthetic", "tiny", "--write", path, "--force").returncode == 0
    assert path.read_bytes().startswith(b"GGUF")


def test_nothing_to_measure_is_a_usage_error(bitnet: Bitnet) -> None:
    assert bitnet("bench", "-p", "0", "-n", "0").returncode == 2


def test_an_absurd_number_of_threads_is_a_usage_error(bitnet: Bitnet) -> None:
    refused = bitnet("bench", *FAST, "-t", "99999", "--backend", "cpu")
    assert refused.returncode == 2
    assert "threads is 99999" in refused.stderr


def test_latency_and_memory_are_reports_of_their_own(bitnet: Bitnet, tmp_path: Path) -> None:
    fast = ("-p", "8", "-n", "4", "-r", "2", "-t", "1")
    (latency,) = json.loads(bitnet("bench", "--latency", *fast, "-o", "json").stdout)
    assert latency["test"] == "pp8+tg4" and len(latency["token_ms"]) == 8 and len(latency["first_ms"]) == 2
    pytest.importorskip("matplotlib")
    picture = tmp_path / "latency.svg"
    shown = bitnet("bench", "--latency", *fast, "--plot", picture).stdout
    assert "█" in shown and "p99" in shown and picture.read_bytes().startswith(b"<?xml")
    assert "unexplained" in bitnet("bench", "--memory", *fast).stdout
    for wrong in (("--memory", "--latency"), ("--memory", *fast, "-p", "4"), ("--latency", *fast, "-o", "csv")):
        refused = bitnet("bench", *wrong)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
