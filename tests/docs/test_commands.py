"""Every command in README.md and docs/ would start, every Python block runs.

Commands are read by the parsers of the programs that they name, so an option, a subcommand or a script that
does not exist fails, and configuration files are loaded with their ``--set`` options. Their work is
left to other tests. A comment ``<!-- needs: cluster -->`` above a block says what it would need beyond
this checkout. It exempts nothing from these checks, but blocks that need "the edits of this page" are checked
after these edits, in tests/docs/test_development.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import LAUNCHERS, CommandError, check, command_lines
from tests.docs.pages import PAGES, REPOSITORY, Block, blocks, prose

ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
OF_EXAMPLES = "the edits of this page"
COMMANDS = [
    (block, line)
    for block in ALL_BLOCKS
    if block.language == "bash" and block.marks.get("needs") != OF_EXAMPLES  # tests/docs/test_development.py
    for line in command_lines(block.text)
]
PROGRAMS = ("make", "python", "pip", "tensorboard", *LAUNCHERS)


def named(value: object) -> str:
    return re.sub(r"\s+", " ", str(value))[:70]


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=named)
def test_every_command_would_start(block: Block, command: str):
    check(command)


def inline_commands() -> list[tuple[str, str]]:
    """Return the commands within the text; those with an ellipsis are excerpts."""
    found = []
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            program = code.split(" ")[0]
            if program in PROGRAMS and " " in code and "..." not in code and "FILE" not in code:
                found.append((str(page.relative_to(REPOSITORY)), code))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "command"), inline_commands(), ids=named)
def test_every_command_in_the_text_would_start(page: str, command: str):
    check(command)


def test_the_needs_of_blocks_are_known():
    needs = {block.marks["needs"] for block in ALL_BLOCKS if "needs" in block.marks}
    assert needs <= {"cluster", "a published model", OF_EXAMPLES}


def test_commands_for_several_nodes_are_marked():
    several = re.compile(r"--hostfile|--nnodes|sbatch|--rdzv-endpoint")
    unmarked = [str(block) for block, line in COMMANDS if several.search(line) and "needs" not in block.marks]
    assert unmarked == []


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "make setup NO_SUCH_VARIABLE=1",
        "python -m data_tools build --no-such-option",
        "python -m data_tools no-such-command",
        "python launch/no_such_script.py",
        "python launch/pretrain.py --deepspeed_config ds_configs/strict.json --no-such-option",
        "python launch/report.py",
        "deepspeed --no-such-option launch/pretrain.py --deepspeed_config ds_configs/strict.json",
        "deepspeed launch/pretrain.py --no-such-option",
        "torchrun --no-such-option launch/pretrain.py --deepspeed_config ds_configs/strict.json",
        "mpirun -n 2 python -m data_tools no-such-command",
        "sbatch launch/slurm/no_such.sbatch --deepspeed_config ds_configs/strict.json",
        "tensorboard --no-such-option",
        "no-such-program",
    ],
)
def test_a_command_that_would_not_start_is_found(command: str):
    with pytest.raises(CommandError):
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python launch/pretrain.py --deepspeed_config ds_configs/xl.json --set elc_bert.model.varian=zero",
        "python launch/plan.py --config ds_configs/strict.json --set elc_bert.training.max_steps=0",
    ],
)
def test_a_key_that_does_not_exist_is_found(command: str):
    from elc_bert.utils.errors import UserError

    with pytest.raises(UserError):
        check(command)


@pytest.fixture(scope="module")
def newcomers_folder(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the Python blocks run: the tiny run as ``runs/demo``, and its exports."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "runs").mkdir()
    (folder / "runs" / "demo").symlink_to(tiny_run.directory)
    for name in ("demo", "strict_small"):
        command = [sys.executable, "launch/export.py", str(tiny_run.directory), str(folder / "models" / name)]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    return folder


PYTHON_BLOCKS = [block for block in ALL_BLOCKS if block.language == "python"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", [block for block in PYTHON_BLOCKS if "file" not in block.marks], ids=named)
def test_every_python_block_runs(block: Block, newcomers_folder: Path):
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=newcomers_folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(newcomers_folder),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(120)
def test_the_planners_page_shows_what_the_command_prints():
    (page,) = [page for page in PAGES if page.name == "planner.md"]
    command = command_lines(next(block.text for block in blocks(page) if block.language == "bash"))[0]
    shown = next(block.text for block in blocks(page) if block.language == "text")
    done = subprocess.run(
        [sys.executable, *command.split(" ")[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    printed = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert [line for line in shown.splitlines() if " ".join(line.split()) not in printed] == []
