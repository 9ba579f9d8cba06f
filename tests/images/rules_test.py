"""Breaks each promise once, in a copy, and wants rules.py to notice that one."""

import shutil
import tempfile
import unittest
from pathlib import Path

from rules import Ignored, problems

ROOT = Path(__file__).resolve().parents[2]
COPIED = [".dockerignore", "docker-compose.yml", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo", "infra/docker", "infra/dev",
          "infra/firestore", "infra/agents", "shared", "worker", "api", "src"]  # fmt: skip
DOCKERFILE, COMPOSE, BAKE, IGNORE = "infra/docker/Dockerfile", "docker-compose.yml", "infra/docker/docker-bake.hcl", ".dockerignore"

# (file, what stands there, what is written instead, what the complaint must say)
BREAKS = [
    (DOCKERFILE, "COPY worker worker", "COPY labour labour", "COPY labour: it is not there"),
    (DOCKERFILE, "COPY worker worker\n", "", "the crate worker is not copied"),
    (DOCKERFILE, "COPY infra/docker/seccomp.json infra/docker/seccomp.json\n", "", "includes infra/docker/seccomp.json"),
    (DOCKERFILE, "COPY --from=mend", "COPY --from=mended", "no stage before it"),
    (DOCKERFILE, "rust:1.", "rust:0.", "rust-toolchain.toml names"),
    (DOCKERFILE, "USER 65532:65532\nENTRYPOINT", "ENTRYPOINT", "worker runs as root"),
    (DOCKERFILE, "FROM quayside AS api", "FROM quayside AS web", "the stage api, which is not there"),
    (IGNORE, "!infra/firestore/firestore.rules\n", "", "COPY infra/firestore/firestore.rules: .dockerignore keeps it out"),
    (IGNORE, "!src\n", "!src\nsrc/cli.rs\n", "keeps src/cli.rs out"),
    (IGNORE, "\n*\n", "\n", "lets .git/config into"),
    (IGNORE, "**/*.pem\n", "", "lets api/src/tokens/private.pem into"),
    (COMPOSE, "127.0.0.1:${QUAYSIDE_PORT", "0.0.0.0:${QUAYSIDE_PORT", "to other machines"),
    (COMPOSE, "  cap_drop: [ALL]\n", "", "rights that it does not need"),
    (COMPOSE, 'tmpfs: ["/tmp:exec,size=64m"]\n', "volumes: [/var/run/docker.sock:/var/run/docker.sock]\n", "gets the engine's socket"),
    (COMPOSE, "QUAYSIDE__WORKER__DRAIN: 25s", "QUAYSIDE__WORKER__DRAIN: 40s", "before its drain is over"),
    (COMPOSE, "image: quayside/api:", "image: quayside/front:", "docker-bake.hcl calls it"),
    (BAKE, 'names("worker")', 'names("labour")', "no target builds worker"),
]


class Rules(unittest.TestCase):
    def setUp(self):
        self.root = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name in COPIED:
            source, target = ROOT / name, self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)

    def test_every_broken_promise_is_noticed(self):
        self.assertEqual(list(problems(self.root)), [])
        for name, there, instead, complaint in BREAKS:
            with self.subTest(complaint):
                path = self.root / name
                text = path.read_text()
                self.assertIn(there, text)
                path.write_text(text.replace(there, instead, 1))
                self.assertIn(complaint, "\n".join(problems(self.root)))
                path.write_text(text)

    def test_patterns_are_read_as_buildkit_reads_them(self):
        ignored = Ignored("# words\n*\n!src\n**/*.pem\nsrc/*/deep?\n")
        for path, inside in [("src/a.rs", True), ("src/a/b.rs", True), ("source", False), ("a.pem", False), ("src/a.pem", False),
                             ("src/a/deep1/x", False), ("src/a/deep", True), ("src/a/b/deep1", True)]:  # fmt: skip
            self.assertEqual(ignored.lets_in(path), inside, path)


if __name__ == "__main__":
    unittest.main()
