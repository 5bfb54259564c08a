"""The entry points: their options, and that they hold no logic."""

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


def test_all_scripts_are_known():
    assert {path.stem for path in SCRIPTS} == {"demo", "evaluate", "export", "plan", "pretrain", "report"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_explains_itself_with_examples(script: Path):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name} ")
    assert f"launch/{script.name}" in done.stdout, "an example"
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


def test_options_of_a_run():
    arguments = pretrain.parse_arguments([*CONFIG, "--set", "a=1", "--set", "b=2", "--local_rank", "3"])
    assert arguments.config == Path("run.json")
    assert arguments.set == ["a=1", "b=2"]
    assert (arguments.resume, arguments.log_level, arguments.supervise) == ("never", "info", None)


def test_number_of_supervised_hosts():
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
        ([*CONFIG, "--supervise", "1", "--find-micro-batch"], ["--supervise", "--find-micro-batch"]),
        ([*CONFIG, "--supervise", "1", "--resume", "somewhere"], ["--supervise", "--resume"]),
        ([*CONFIG, "--supervise", "1", "--max-restarts", "-1"], ["--max-restarts", "-1"]),
    ],
)
def test_wrong_options_are_named(arguments, facts, capsys):
    with pytest.raises(SystemExit) as end:
        pretrain.parse_arguments(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for fact in facts:
        assert fact in error


def test_a_default_makes_the_configuration_optional():
    parser = options.command_line("Test.")
    options.add_config_options(parser, "--config", Path("ds_configs/demo.json"))
    assert parser.parse_args([]).config == Path("ds_configs/demo.json")
    assert plan.build_parser().parse_args(["--config", "x.json"]).config == Path("x.json")


def test_models_are_named_alike_everywhere():
    arguments = export.build_parser().parse_args(["runs/a", "models/a", "--variant", "zero"])
    assert (arguments.model, arguments.folder) == (Path("runs/a"), Path("models/a"))
    assert (arguments.variant, arguments.tokenizer) == ("zero", None)


def test_errors_name_the_program_and_the_file(tmp_path, capsys):
    assert report.main([str(tmp_path / "a"), "--output", str(tmp_path / "missing" / "page.html")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"\S+: error: --output \S*/missing/page\.html: .+\n", error)
