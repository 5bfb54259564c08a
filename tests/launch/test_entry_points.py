"""The entry points: their options and messages, and a check that they hold no logic."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from elc_bert_launch import export, options, plan, pretrain, report
from tests.support.launching import environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "launch").glob("*.py") if path.stem not in ("__init__", "options"))
CONFIG = ["--deepspeed_config", "run.json"]


def test_the_entry_points_are_those_expected():
    assert {path.stem for path in SCRIPTS} == {"demo", "evaluate", "export", "plan", "pretrain", "report"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_help_text_of_every_script_has_examples(script: Path):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name} ")
    assert f"launch/{script.name}" in done.stdout, "the help text must contain an example"
    for command in re.findall(r"launch/(\w+)\.py", done.stdout):
        assert (ROOT / "launch" / f"{command}.py").is_file()
    for config in re.findall(r"ds_configs/\w+\.json", done.stdout):
        assert (ROOT / config).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_only_parse_call_and_exit(script: Path):
    tree = ast.parse(script.read_bytes())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not [node for node in tree.body if isinstance(node, ast.ClassDef)]
    main = functions["main"]
    assert main.end_lineno is not None
    assert main.end_lineno - main.lineno < 45
    assert functions.keys() <= {"main", "build_parser", "parse_arguments", "host_range"}


def test_options_and_defaults_of_pretrain():
    arguments = pretrain.parse_arguments([*CONFIG, "--set", "a=1", "--set", "b=2", "--local_rank", "3"])
    assert arguments.config == Path("run.json")
    assert arguments.set == ["a=1", "b=2"]
    assert (arguments.resume, arguments.log_level, arguments.supervise) == ("never", "info", None)


def test_supervise_takes_a_number_or_a_range_of_hosts():
    single = pretrain.parse_arguments([*CONFIG, "--supervise", "1"])
    assert single.supervise == (1, 1)
    several = pretrain.parse_arguments([*CONFIG, "--supervise", "2:4", "--rdzv-endpoint", "node1:29400"])
    assert several.supervise == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["--deepspeed_config"]),
        ([*CONFIG, "--log-level", "loud"], ["--log-level", "loud", "debug"]),
        ([*CONFIG, "--memory-limit", "0"], ["--memory-limit", "0"]),
        ([*CONFIG, "--supervise", "3:2"], ["--supervise", "3:2"]),
        ([*CONFIG, "--supervise", "0"], ["--supervise", "0"]),
        ([*CONFIG, "--supervise", "2"], ["--supervise", "--rdzv-endpoint"]),
        (
            [*CONFIG, "--supervise", "2", "--rdzv-endpoint", "node1"],
            ["--rdzv-endpoint", "HOST:PORT"],
        ),
        ([*CONFIG, "--supervise", "2", "--rdzv-endpoint", "node1:99999"], ["--rdzv-endpoint", "node1:99999"]),
        ([*CONFIG, "--supervise", "2:x"], ["--supervise", "MIN:MAX", "2:x"]),
        ([*CONFIG, "--supervise", "1", "--nproc-per-node", "4097"], ["--nproc-per-node", "1 to 4096"]),
        ([*CONFIG, "--supervise", "1", "--find-micro-batch"], ["--supervise", "--find-micro-batch"]),
        ([*CONFIG, "--supervise", "1", "--resume", "somewhere"], ["--supervise", "--resume"]),
        ([*CONFIG, "--supervise", "1", "--max-restarts", "-1"], ["--max-restarts", "-1"]),
    ],
)
def test_the_error_for_invalid_options_names_them(arguments, facts, capsys):
    with pytest.raises(SystemExit) as end:
        pretrain.parse_arguments(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for fact in facts:
        assert fact in error


def test_the_configuration_is_optional_if_there_is_a_default():
    parser = options.command_line("Test.")
    options.add_config_options(parser, "--config", Path("ds_configs/demo.json"))
    assert parser.parse_args([]).config == Path("ds_configs/demo.json")
    assert plan.build_parser().parse_args(["--config", "x.json"]).config == Path("x.json")


def test_the_arguments_of_export_are_a_model_and_a_folder():
    arguments = export.build_parser().parse_args(["runs/a", "models/a", "--variant", "zero"])
    assert (arguments.model, arguments.folder) == (Path("runs/a"), Path("models/a"))
    assert (arguments.variant, arguments.tokenizer) == ("zero", None)


def test_errors_name_the_program_and_the_file(tmp_path, capsys):
    assert report.main([str(tmp_path / "a"), "--output", str(tmp_path / "missing" / "page.html")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"\S+: error: --output \S*/missing/page\.html: .+\n", error)
