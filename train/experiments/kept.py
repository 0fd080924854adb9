"""Small results of finished stages, kept in the repository, where they outlive the machine.

`DIRECTORY/NAME/KEY/` holds the files that a stage names in `keep`, and its marker. KEY is of the
stage's settings: a trial with others overwrites nothing. Files of other stages (checkpoints,
answers) are not here: whoever needs those runs the stage again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from la_trt.errors import InputError
from la_trt.files.atomic import atomic_file
from train.experiments.code import REPOSITORY
from train.experiments.stages import MARKER, Finished, Stage, read_marker
from train.inputs import digest

INPUTS = "inputs.json"


def keep(stage: Stage, made: Finished, directory: Path, work: Path) -> Finished | None:
    """The kept copy of a finished stage's small files; None for a stage that keeps nothing.

    JSON is packed tightly; text says nothing of where the stage ran.
    """
    if not stage.keep:
        return None
    home = directory / stage.name / made.keys.settings[:12]
    for name in (*stage.keep, MARKER):
        content = (made.directory / name).read_bytes()
        if not name.endswith(".png"):
            text = content.decode()
            for place in (work, REPOSITORY):
                text = text.replace(f"{place}/", "")
            if name.endswith(".json") and name != MARKER:
                text = json.dumps(json.loads(text), separators=(",", ":")) + "\n"
            content = text.encode()
        with atomic_file(home / name) as file:
            file.write(content)
    return read_marker(home)


def find_kept(stage: Stage, settings_key: str, directory: Path) -> Finished | None:
    """The kept run of a stage with these settings, by whatever code; None where none is whole."""
    home = directory / stage.name / settings_key[:12]
    made = read_marker(home) if stage.keep else None
    whole = made is not None and all((home / name).exists() for name in stage.keep)
    return made if made is not None and whole and made.keys.settings == settings_key else None


def input_digests(inputs: Mapping[str, Path], directory: Path) -> dict[str, str]:
    """A digest of every input; of one that is not there, what `note_inputs` wrote, or `absent`."""
    try:
        noted = json.loads((directory / INPUTS).read_bytes())
    except (OSError, ValueError):
        noted = {}
    found = {}
    for name, path in inputs.items():
        try:
            found[name] = digest([path])
        except InputError:
            found[name] = str(noted.get(name, "absent"))
    return found


def note_inputs(digests: Mapping[str, str], directory: Path) -> None:
    """Nothing; what the kept results were made from stands beside them."""
    with atomic_file(directory / INPUTS) as file:
        file.write(json.dumps(dict(digests), indent=1).encode() + b"\n")
