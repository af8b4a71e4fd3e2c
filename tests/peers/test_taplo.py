"""An editor's view of lb.toml: taplo, which is behind the TOML support of most editors, with what `isobar schema` prints.

usage: test_taplo.py BINARY
"""

import pathlib
import subprocess
import sys
import tempfile

from harness import BINARY, check, done

ROOT = pathlib.Path(__file__).resolve().parents[2]
TAPLO = pathlib.Path(sys.executable).parent / "taplo"


def lint(*arguments):
    """Whether taplo has nothing against a file, and what it says."""
    ran = subprocess.run([TAPLO, "lint", "--no-auto-config", *map(str, arguments)], capture_output=True, text=True)
    return ran.returncode == 0, ran.stdout + ran.stderr


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    schema = folder / "lb.schema.json"
    schema.write_text(subprocess.run([BINARY, "schema"], check=True, capture_output=True, text=True).stdout)
    by_option = f"--schema=file://{schema}"
    good = [ROOT / "lb.toml", ROOT / "examples/compose/isobar/lb.toml", *sorted((ROOT / "examples/configs").glob("*.toml"))]
    for path in good:
        passes, said = lint(by_option, path)
        check(f"{path.relative_to(ROOT)} passes", passes, said)

    # An editor finds the schema by the first line of the file.
    text = (ROOT / "examples/compose/isobar/lb.toml").read_text()
    for name, line, passes in [
        ("as it is", "", True),
        ("with a key that there is not", "\nworker = 2\n", False),
        ("with a number out of range", "\nworkers = 2000\n", False),
        ("with a word that there is not", "\noverload = { enabled = \"often\" }\n", False),
        ("with a duration without its unit", "\ndrain_limit = \"5\"\n", False),
        ("with a variable of the environment", "\nworkers = \"${WORKERS}\"\n", True),
    ]:
        path = folder / "lb.toml"
        path.write_text(f"#:schema ./lb.schema.json\n{line}{text}")
        passed, said = lint(path)
        check(f"a file {name} {'passes' if passes else 'is refused'}", passed == passes, said)
        key = line.strip().split(" ")[0]
        check(f"a file {name}: the key is named", passes or key in said, said)

    for name in ["numbers_out_of_range", "unknown_keys", "wrong_types", "durations"]:
        passes, said = lint(by_option, ROOT / f"tests/config/invalid/{name}.toml")
        check(f"tests/config/invalid/{name}.toml is refused", not passes, said)

done(25)
