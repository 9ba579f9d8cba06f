// Messages to start with. They are Python for the agent `python`, and each shows one thing about the place.

/** `key` names the words in the dictionaries: empty.<key> and empty.<key>.about. */
export const examples = [
  {
    key: "count",
    message: [
      "import time",
      "",
      "for step in range(1, 21):",
      "    print(f\"{step:2} of 20  {'=' * step}\", flush=True)",
      "    time.sleep(0.4)",
      "print(\"done\")",
    ].join("\n"),
  },
  {
    key: "fractal",
    message: [
      "for y in range(-12, 13):",
      "    line = \"\"",
      "    for x in range(-42, 19):",
      "        z, c, n = 0, complex(x / 21, y / 11), 0",
      "        while abs(z) < 2 and n < 60:",
      "            z, n = z * z + c, n + 1",
      "        line += \" .:-=+*%@#\"[min(n // 3, 9)] if n < 60 else \"#\"",
      "    print(line.rstrip())",
    ].join("\n"),
  },
  {
    key: "inside",
    message: [
      "import os, platform, socket",
      "",
      "print(\"python    \", platform.python_version(), \"on\", platform.system())",
      "print(\"user      \", os.getuid())",
      "print(\"processes \", sum(name.isdigit() for name in os.listdir(\"/proc\")))",
      "try:",
      "    print(\"memory    \", int(open(\"/sys/fs/cgroup/memory.max\").read()) >> 20, \"MiB\")",
      "except (OSError, ValueError):",
      "    print(\"memory     not shown\")",
      "try:",
      "    socket.create_connection((\"192.0.2.1\", 80), timeout=2)",
      "    print(\"network    open\")",
      "except OSError as error:",
      "    print(\"network    closed:\", error)",
    ].join("\n"),
  },
];
