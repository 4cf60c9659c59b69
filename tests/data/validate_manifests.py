"""Validates Kubernetes manifests strictly: validate_manifests.py KUBERNETES_VERSION FILE... Kinds that are not Kubernetes' own are
validated against the schemas in `crds`. Prints the kind of each object that is good, and ends with 1 at the first that is not."""

import json
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

CRDS = Path(__file__).parent / "crds"


def main(version, files):
    for file in files:
        for manifest in yaml.safe_load_all(Path(file).read_text()):
            if manifest is None:
                continue
            crd = CRDS / f"{manifest['kind']}.json"
            try:
                if crd.exists():
                    jsonschema.validate(manifest, json.loads(crd.read_text()))
                else:
                    kubernetes_validate.validate(manifest, version, strict=True)
            except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
                sys.exit(f"{file}: {manifest['kind']}: {error}")
            print(manifest["kind"])


main(sys.argv[1], sys.argv[2:])
