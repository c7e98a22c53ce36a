"""Make .venv: a virtual environment with the project in it, editable, and everything it needs. Used by the Makefile.

Run by the system's python3 before anything is installed: standard library only, and syntax that old versions parse,
so that they get as far as the message that says what is needed.
"""

import os
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What pyproject's [build-system] asks, since the build is not isolated, and the tool CMake drives.
BUILD_REQUIREMENTS = ["scikit-build-core>=0.11", "apache-tvm-ffi>=0.1.6", "ninja>=1.11"]


def main(venv):
    """Create or complete the environment in the folder `venv` and mark it with the file .ready."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < MINIMUM:
        return f"python3 is version {version}; octavo needs 3.11 or later: make PYTHON=python3.12 ..."
    for tool in ("cmake", os.environ.get("CXX", "g++").split()[0]):
        if not shutil.which(tool):
            return f"{tool} is missing, which builds the kernels: apt install {tool}"
    python = os.path.join(venv, "bin", "python")
    try:
        if not _works([python, "-m", "pip", "--version"]):
            say(f"creating {venv} with python {version}")
            _create(venv, python)
        # pip compiles what it installs: where PYTHONDONTWRITEBYTECODE is set, each engine would compile torch anew.
        install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
        install += ["-c", os.path.join(ROOT, "constraints.txt")]
        say(f"installing the build tools into {venv}")
        subprocess.check_call([*install, "--quiet", *BUILD_REQUIREMENTS])
        say("installing torch and the rest (minutes the first time), building the kernels")
        project = [*install, "--quiet", "--no-build-isolation", "--no-deps", "--editable", "."]
        _all([[*install, *_requirements()], project])
    except subprocess.CalledProcessError as error:
        return f"setting up {venv} failed: {' '.join(error.cmd)}"
    with open(os.path.join(venv, ".ready"), "w"):
        pass
    say(f"{venv} is ready")
    return 0


def _create(venv, python):
    if _works([sys.executable, "-c", "import ensurepip"]):
        subprocess.check_call([sys.executable, "-m", "venv", venv])
    elif _works([sys.executable, "-m", "pip", "--version"]):
        # Debian splits ensurepip off, but its own pip can put a pip into the new environment.
        subprocess.check_call([sys.executable, "-m", "venv", "--without-pip", venv])
        subprocess.check_call([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "pip"])
    else:
        sys.exit("python3 can't create virtual environments here: apt install python3-venv")


def _requirements():
    """What pyproject.toml asks for the project and for each of its extras."""
    import tomllib  # as old as MINIMUM

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    return [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]


def _all(commands):
    """Side by side: one waits for the network while the other compiles. A failure is told when all have ended."""
    running = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    for process in running:
        process.wait()
    for process in running:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)


def _works(command):
    if not os.path.exists(command[0]):
        return False
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def say(text):
    print(f"octavo: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ".venv"))
