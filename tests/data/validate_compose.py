"""Validates a Compose file: validate_compose.py SCHEMA FILE. Prints what it mounts, one path a line, and ends with 1 where the
file does not fit the schema of the Compose specification."""

import json
import sys
from pathlib import Path

import jsonschema
import yaml

schema, file = map(Path, sys.argv[1:])
compose = yaml.safe_load(file.read_text())
try:
    jsonschema.validate(compose, json.loads(schema.read_text()))
except jsonschema.ValidationError as error:
    sys.exit(f"{file}: {error.json_path}: {error.message}")
for service in compose["services"].values():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            print(source)
        elif source not in compose["volumes"]:
            sys.exit(f"{file}: volume {source} is not declared")
