"""What editors know of lb.toml: `isobar schema` as validators see it that others have written.

Every example passes it. Every file of tests/config/invalid is refused by it, but for those whose mistake no schema can see: these are listed here by
what would have to be known, so that a mistake which the schema should see is not among them by accident.

usage: test_schema.py BINARY
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import jsonschema

from harness import BINARY, check, done

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Why a schema cannot see it, and the files where that is so.
UNSEEN = json.loads((pathlib.Path(__file__).parent / "unseen_by_a_schema.json").read_text())


def problems(validator, path):
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(tomllib.loads(path.read_text()))]


schema = json.loads(subprocess.run([BINARY, "schema"], check=True, capture_output=True, text=True).stdout)
jsonschema.Draft7Validator.check_schema(schema)
check("the schema is one", schema["$schema"].startswith("http://json-schema.org/draft-07"), schema.get("$schema"))
validator = jsonschema.Draft7Validator(schema)

good = [ROOT / "lb.toml", ROOT / "examples/compose/isobar/lb.toml", *sorted((ROOT / "examples/configs").glob("*.toml"))]
good += sorted((ROOT / "tests/config/valid").glob("*.toml")) + sorted((ROOT / "tests/config/warned").glob("*.toml"))
for path in good:
    seen = problems(validator, path)
    check(f"{path.relative_to(ROOT)} passes", not seen, seen)

unseen = {name: why for why, names in UNSEEN.items() for name in names}
passed = []
for path in sorted((ROOT / "tests/config/invalid").glob("*.toml")):
    try:
        refused = bool(problems(validator, path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        continue  # Not TOML, which an editor sees by itself.
    if not refused:
        passed.append(path.name)
    expected = path.name in unseen
    check(f"{path.name} is {'not seen' if expected else 'refused'}", refused != expected, unseen.get(path.name, "passes the schema"))
check("nothing is listed that is not there", set(unseen) <= set(passed), sorted(set(unseen) - set(passed)))

if "--list" in sys.argv:
    print("\n".join(passed))
done(100)
