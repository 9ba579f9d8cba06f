"""What the Dockerfile, the compose file, the bake file and .dockerignore promise each other: rules.py ROOT.

Prints a line for each broken promise and exits with 1 when there is one.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

# None of these may ever get into a build context, wherever somebody leaves them.
SECRETS = [
    ".env",
    ".git/config",
    "src/.env",
    "api/web/.env.local",
    "api/web/node_modules/left-pad/index.js",
    "data/quayside.db",
    "shared/src/quayside.db",
    "worker/src/server.key",
    "api/src/tokens/private.pem",
    "shared/src/google-credentials.json",
    "service-account.json",
    "target/debug/quayside",
    "infra/docker/notes.txt",
]
INCLUDE = re.compile(r'include_(?:str|bytes|dir)!\("([^"]+)"\)')


def instructions(text):
    """(word, rest) of every instruction, with continued lines joined and comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        yield word.upper(), rest.strip()


def stages(dockerfile):
    """Name of each stage: its instructions, in order."""
    found, current = {}, None
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            current = rest.split()[-1]
            found[current] = []
        if current:
            found[current].append((word, rest))
    return found


class Ignored:
    """.dockerignore as BuildKit reads it: the last pattern that matches a path or a folder above it decides."""

    def __init__(self, text):
        lines = [line.strip() for line in text.splitlines()]
        self.patterns = [
            (self.expression(line.lstrip("!").strip("/")), line.startswith("!")) for line in lines if line and not line.startswith("#")
        ]

    @staticmethod
    def expression(pattern):
        tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
        return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts) + r"\Z")

    def lets_in(self, path):
        pieces = path.split("/")
        above = ["/".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
        inside = True
        for expression, excepted in self.patterns:
            if any(expression.match(one) for one in above):
                inside = excepted
        return inside


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", str(text)).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def files_below(root, source):
    path = root / source
    if path.is_file():
        return [source]
    return [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(path) for name in names]


def copies(root, by_stage):
    """Sources of every COPY from the build context."""
    for stage, lines in by_stage.items():
        for word, rest in lines:
            if word == "COPY" and "--from=" not in rest:
                arguments = [argument for argument in rest.split() if not argument.startswith("--")]
                for source in arguments[:-1]:
                    yield stage, source


def context_problems(root, by_stage):
    ignored = Ignored((root / ".dockerignore").read_text())
    copied = list(copies(root, by_stage))
    for stage, source in copied:
        below = files_below(root, source)
        if not below:
            yield f"Dockerfile, stage {stage}: COPY {source}: it is not there"
        elif not any(map(ignored.lets_in, below)):
            yield f"Dockerfile, stage {stage}: COPY {source}: .dockerignore keeps it out"
    for secret in SECRETS:
        if ignored.lets_in(secret):
            yield f".dockerignore lets {secret} into the build context"

    # The program: every crate of the workspace and every file that is compiled into it.
    sources = [source for stage, source in copied if stage == "compile"]
    inside = {path for source in sources for path in files_below(root, source) if ignored.lets_in(path)}
    members = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["members"]
    for member in members:
        if f"{member}/Cargo.toml" not in inside:
            yield f"Dockerfile: the crate {member} is not copied into the stage `compile`"
    for member in [*members, "."]:
        for path in files_below(root, os.path.normpath(f"{member}/src")):
            if path.endswith(".rs") and path not in inside:
                yield f".dockerignore keeps {path} out, which is part of the program"
    for path in sorted(path for path in inside if path.endswith(".rs")):
        for included in INCLUDE.findall((root / path).read_text()):
            crate = path.split("/src/")[0]
            if "$CARGO_MANIFEST_DIR" in included:
                target = included.replace("$CARGO_MANIFEST_DIR", crate)
            else:
                target = os.path.join(os.path.dirname(path), included)
            target = os.path.normpath(target)
            if not any(one == target or one.startswith(f"{target}/") for one in inside):
                yield f"{path} includes {target}, which does not get into the stage `compile`"


def dockerfile_problems(root, text, by_stage):
    names = list(by_stage)
    for position, (stage, lines) in enumerate(by_stage.items()):
        for word, rest in lines:
            found = re.search(r"--from=(\S+)", rest) if word == "COPY" else None
            if found and found.group(1) not in names[:position]:
                yield f"Dockerfile, stage {stage}: COPY --from={found.group(1)}: no stage before it has that name"
    channel = tomllib.loads((root / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    if f"RUST_IMAGE=rust:{channel}-" not in text:
        yield f"Dockerfile: RUST_IMAGE is not of the version {channel} that rust-toolchain.toml names"


def user_of(by_stage, stage):
    """The user that a stage ends with, its own or that of the stage below it."""
    users = [rest for word, rest in by_stage[stage] if word == "USER"]
    if users:
        return users[-1]
    below = [rest for word, rest in by_stage[stage] if word == "FROM"][0].split()[0]
    return user_of(by_stage, below) if below in by_stage else None


def compose_problems(root, by_stage):
    services = YAML(typ="safe").load(root / "docker-compose.yml")["services"]
    bake = (root / "infra/docker/docker-bake.hcl").read_text()
    for name, service in services.items():
        if "ALL" not in service.get("cap_drop", []) or not service.get("read_only") or "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"docker-compose.yml: {name} has rights that it does not need"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"docker-compose.yml: {name} publishes {port} to other machines, where anybody could be any user"
        if name != "worker" and any("docker.sock" in str(volume) for volume in service.get("volumes", [])):
            yield f"docker-compose.yml: {name} gets the engine's socket, and with it the machine"
        build = service.get("build")
        if isinstance(build, str):
            if not (root / build / "Dockerfile").is_file():
                yield f"docker-compose.yml: {name} is built from {build}, where no Dockerfile is"
        elif build["target"] not in by_stage:
            yield f"docker-compose.yml: {name} is built from the stage {build['target']}, which is not there"
        else:
            target = build["target"]
            user = user_of(by_stage, target)
            if not user or user.split(":")[0] in ("0", "root"):
                yield f"Dockerfile: {target} runs as root"
            if not re.search(rf'target\s*=\s*"{target}"\s+tags\s*=\s*names\("{target}"\)', bake):
                yield f"docker-bake.hcl: no target builds {target} and names it so"
            if not service["image"].startswith(f"quayside/{target}:"):
                yield f"docker-compose.yml: {name} is called {service['image']}, docker-bake.hcl calls it quayside/{target}"
    worker = services["worker"]
    if seconds(worker["stop_grace_period"]) <= seconds(worker["environment"]["QUAYSIDE__WORKER__DRAIN"]):
        yield "docker-compose.yml: the worker is killed before its drain is over"


def problems(root):
    text = (root / "infra/docker/Dockerfile").read_text()
    by_stage = stages(text)
    yield from dockerfile_problems(root, text, by_stage)
    yield from context_problems(root, by_stage)
    yield from compose_problems(root, by_stage)


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(1 if found else 0)
