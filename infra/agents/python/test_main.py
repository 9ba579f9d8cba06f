"""Tests of the agent `python`, from outside: a request line in, event lines out. Run: python3 -m unittest -v"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MAIN = Path(__file__).with_name("main.py")
PATIENCE = 30  # seconds before a hanging agent fails its test


class Reply:
    def __init__(self, code, out, err):
        self.code = code
        self.events = [json.loads(line) for line in out.split(b"\n") if line]
        self.text = "".join(event["text"] for event in self.events if event["type"] == "delta")
        self.finished = self.events[-1:] == [{"type": "result"}]
        self.err = err.decode(errors="replace")


def start(message):
    """Starts the agent with its standard input left open: the request ends with its line, not with the file."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-u", str(MAIN)], cwd="/", start_new_session=True, **pipes)
    process.watchdog = threading.Timer(PATIENCE, kill, (process,))
    process.watchdog.daemon = True
    process.watchdog.start()
    say(process, message)
    return process


def say(process, message):
    request = {"protocol": 1, "runId": "run_1", "conversationId": "c", "userId": "u", "message": message}
    process.stdin.write(json.dumps({**request, "history": [], "attempt": 1}).encode() + b"\n")
    process.stdin.flush()


def reply(process):
    """The events of one reply, up to its result or the end of the output."""
    events = []
    while not events or events[-1]["type"] != "result":
        line = process.stdout.readline()
        if not line:
            break
        events.append(json.loads(line))
    return events


def kill(process):
    """The agent and its program: what hangs ends here, and the test sees a reply that is not the expected one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def finish(process):
    """Everything the agent says to the requests so far, and the end of it. No further request comes."""
    with process, ThreadPoolExecutor() as pool:
        process.stdin.close()
        err = pool.submit(process.stderr.read)
        out = process.stdout.read()
        process.wait()
        process.watchdog.cancel()
        return Reply(process.returncode, out, err.result())


def ask(message):
    return finish(start(message))


def has_ended(pid):
    """Whether the process is gone or waits for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class WhatAMessageIs(unittest.TestCase):
    def test_code_runs_and_its_output_is_the_reply(self):
        reply = ask("for i in range(3):\n    print(i)")
        self.assertEqual(reply.text, "0\n1\n2\n")
        self.assertEqual((reply.code, reply.finished), (0, True))

    def test_all_python_blocks_run_as_one_program(self):
        reply = ask("First:\n```python\nx = 20\n```\nthen\n```py\nx += 1\n```\nand\n```\nprint(x * 2)\n```\nThanks!")
        self.assertEqual((reply.text, reply.code), ("42\n", 0))

    def test_indented_and_unclosed_blocks_run(self):
        self.assertEqual(ask("A list:\n  ```python\n  if True:\n      print('in')\n  ```").text, "in\n")
        self.assertEqual(ask("Cut off\r\n```python\r\nprint('still')\r\n").text, "still\n")

    def test_a_longer_fence_holds_a_shorter_one(self):
        self.assertEqual(ask('Look\n````python\nprint("""\n```\n""")\n````').text, "\n```\n\n")

    def test_blocks_of_other_languages_are_named_and_not_run(self):
        reply = ask("```python\nprint('py')\n```\n```sh\necho sh\n```")
        self.assertIn("not run", reply.text)
        self.assertIn("sh", reply.text.splitlines()[0])
        self.assertEqual(reply.text.splitlines()[1:], ["py"])

    def test_only_blocks_of_other_languages_get_the_explanation_too(self):
        reply = ask("Please run\n```js\nconsole.log(1)\n```")
        self.assertIn("[not run, only Python is: js]", reply.text)
        self.assertIn("This agent runs Python code", reply.text)

    def test_a_fence_inside_a_string_of_a_program_is_no_fence(self):
        self.assertEqual(ask('print("""\n```js\n```\n""".strip())').text, "```js\n```\n")

    def test_prose_is_explained(self):
        prose = ["hello", "hello, world", "Hi there, how are you?", "Note: hello", "help", "thanks - bye", "", " \n",
                 "# a heading", "what is love", "it's\x00odd", "(" * 5000]
        for message in prose:
            with self.subTest(message=message[:20]):
                reply = ask(message)
                self.assertIn("This agent runs Python code", reply.text)
                self.assertEqual((reply.code, reply.finished, reply.err), (0, True, ""))

    def test_korean_prose_is_explained_in_korean(self):
        for message in ["안녕하세요", "안녕하세요, 반갑습니다", "오늘 날씨 어때?"]:
            with self.subTest(message=message):
                reply = ask(message)
                self.assertIn("파이썬 코드를 실행합니다", reply.text)
                self.assertEqual((reply.code, reply.finished), (0, True))

    def test_a_lone_expression_shows_its_value(self):
        for message, value in {"1 + 1": "2\n", "'a' * 3": "'aaa'\n", "[n * n for n in (1, 2)]": "[1, 4]\n"}.items():
            with self.subTest(message=message):
                self.assertEqual(ask(message).text, value)

    def test_the_value_of_a_call_is_not_shown(self):
        self.assertEqual(ask("import sys\nsys.stdout.write('x')").text, "x")
        self.assertEqual(ask("len('abc')").text, "")

    def test_a_request_without_a_message_is_refused(self):
        for line in [b"", b"not json\n", b"[]\n", b'{"message": 1}\n']:
            with self.subTest(line=line):
                done = subprocess.run([sys.executable, "-u", MAIN], input=line, capture_output=True, timeout=PATIENCE)
                self.assertEqual((done.returncode, done.stdout), (64, b""))
                self.assertIn(b"`message`", done.stderr)


class HowAProgramRuns(unittest.TestCase):
    def test_it_is_the_main_module_and_reads_nothing(self):
        reply = ask("import sys\nif __name__ == '__main__':\n    print([sys.stdin.read()], sys.argv)")
        self.assertEqual(reply.text, "[''] ['<message>']\n")
        self.assertIn("ModuleNotFoundError", ask("import main").text)

    def test_two_prints_with_a_pause_are_two_deltas(self):
        with tempfile.TemporaryDirectory() as folder:
            gate = os.path.join(folder, "gate")
            os.mkfifo(gate)
            process = start(f"print('one')\nopen({gate!r}).read()\nprint('two')")
            try:
                first = json.loads(process.stdout.readline())
                self.assertEqual(first, {"type": "delta", "text": "one\n"})
                with open(gate, "w"):  # opening it for writing lets the program go on
                    pass
            finally:
                reply = finish(process)
        self.assertEqual(reply.events, [{"type": "delta", "text": "two\n"}, {"type": "result"}])

    def test_standard_error_is_the_log_and_not_the_reply(self):
        reply = ask("import sys\nprint('log', file=sys.stderr)\nprint('reply')")
        self.assertEqual((reply.text, reply.err), ("reply\n", "log\n"))

    def test_bytes_that_are_not_utf8_are_replaced(self):
        reply = ask("import os\nos.write(1, b'a\\xff\\xfeb')\nos.write(1, b'\\xed\\x95')")
        self.assertEqual(reply.text, "a\ufffd\ufffdb\ufffd")

    def test_a_character_in_two_writes_stays_whole(self):
        with tempfile.TemporaryDirectory() as folder:
            gate = os.path.join(folder, "gate")
            os.mkfifo(gate)
            program = f"import os\nos.write(1, b'a\\xed\\x95')\nopen({gate!r}).read()\nos.write(1, b'\\x9c')"
            process = start(program)
            try:
                self.assertEqual(json.loads(process.stdout.readline())["text"], "a")
                with open(gate, "w"):
                    pass
            finally:
                reply = finish(process)
        self.assertEqual(reply.text, "한")

    def test_nul_and_control_characters_pass(self):
        reply = ask("print('a\\0b\\x1b[31m\\r\\x7f\\u2028', end='')")
        self.assertEqual(reply.text, "a\0b\x1b[31m\r\x7f\u2028")

    def test_a_mebibyte_arrives_whole_in_events_of_bounded_size(self):
        reply = ask("import sys\nsys.stdout.write('0123456789abcdef' * 65536)")
        self.assertEqual(reply.text, "0123456789abcdef" * 65536)
        self.assertEqual((reply.code, reply.finished), (0, True))
        sizes = [len(event["text"]) for event in reply.events if event["type"] == "delta"]
        self.assertLessEqual(max(sizes), 32 * 1024)
        self.assertLess(len(sizes), 512)

    def test_what_is_in_the_pipe_when_the_program_ends_is_not_lost(self):
        # The program stops its reader, fills the pipe and ends, so that all of it is there at the end.
        process = start(
            "import os, signal\nos.write(2, b'%d\\n' % os.getpid())\nos.kill(os.getppid(), signal.SIGSTOP)\n"
            "os.write(1, b'x' * 60000)\nos._exit(0)"
        )
        pid = int(process.stderr.readline())
        end = time.monotonic() + PATIENCE
        while not has_ended(pid) and time.monotonic() < end:
            time.sleep(0.005)
        self.assertTrue(has_ended(pid))
        process.send_signal(signal.SIGCONT)
        self.assertEqual(finish(process).text, "x" * 60000)

    def test_output_of_other_processes_and_threads_is_part_of_the_reply(self):
        reply = ask(
            "import subprocess, threading, atexit\nsubprocess.run(['echo', 'sub'])\n"
            "atexit.register(print, 'last')\nthreading.Thread(target=print, args=('thread',)).start()"
        )
        self.assertEqual(sorted(reply.text.split()), ["last", "sub", "thread"])
        self.assertTrue(reply.text.endswith("last\n"))

    def test_what_a_program_leaves_running_does_not_hold_the_run(self):
        reply = ask("import subprocess\np = subprocess.Popen(['sleep', '300'], stderr=subprocess.DEVNULL)\nprint(p.pid)")
        os.kill(int(reply.text), signal.SIGKILL)
        self.assertEqual((reply.code, reply.finished), (0, True))


class HowAProgramEnds(unittest.TestCase):
    def test_what_a_program_left_open_is_written(self):
        with tempfile.NamedTemporaryFile("r") as file:
            program = f"a = open({file.name!r}, 'w')\na.write('written')\nimport sys\nsys.stdout.close()"
            self.assertEqual(ask(program).code, 0)
            self.assertEqual(file.read(), "written")

    def test_what_a_program_left_behind_is_finalised(self):
        program = "class Last:\n  def __del__(self): print('bye', end='', flush=True)\nring = [Last()]\nring.append(ring)\n"
        self.assertEqual(ask(program).text, "bye")

    def test_exit_codes_are_passed_on(self):
        for code, expected in {"0": 0, "3": 3, "None": 0, "256 + 7": 7}.items():
            with self.subTest(code=code):
                reply = ask(f"print('out')\nraise SystemExit({code})")
                self.assertEqual((reply.text, reply.code, reply.finished), ("out\n", expected, expected == 0))

    def test_an_exit_message_is_shown(self):
        reply = ask("raise SystemExit('enough')")
        self.assertEqual((reply.text, reply.err, reply.code, reply.finished), ("enough\n", "enough\n", 1, False))

    def test_os_exit_is_passed_on(self):
        self.assertEqual(ask("import os\nos._exit(9)").code, 9)

    def test_an_exception_reaches_the_user_and_the_log(self):
        reply = ask("print('before', end='')\nimport json\ndef f():\n    json.loads('{')\nf()")
        self.assertTrue(reply.text.startswith("beforeTraceback (most recent call last):\n"), reply.text)
        self.assertIn('File "<message>", line 4, in f', reply.text)
        self.assertIn("    json.loads('{')", reply.text)
        self.assertNotIn("main.py", reply.text)
        self.assertNotIn("json/", reply.text)
        self.assertEqual("before" + reply.err, reply.text)
        self.assertEqual((reply.code, reply.finished), (1, False))

    def test_the_cause_of_an_exception_is_shown(self):
        reply = ask("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
        self.assertIn("ZeroDivisionError: division by zero", reply.text)
        self.assertIn("KeyError: 'k'", reply.text)
        self.assertNotIn("main.py", reply.text)

    def test_a_lone_expression_fails_on_its_own_line(self):
        self.assertIn('File "<message>", line 1, in <module>\n    1/0\n', ask("1/0").text)

    def test_lines_of_a_traceback_are_those_of_the_message(self):
        self.assertIn("line 4, in <module>", ask("Text\n\n```python\n1 / 0\n```").text)

    def test_a_syntax_error_in_a_block_is_shown(self):
        reply = ask("Run\n```python\nprint('a'\n```")
        self.assertIn("SyntaxError: '(' was never closed", reply.text)
        self.assertEqual(reply.code, 1)

    def test_endless_recursion_and_broken_exceptions_are_reported(self):
        self.assertIn("RecursionError", ask("def f():\n    f()\nf()").text)
        reply = ask("class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E")
        self.assertIn("E", reply.text)
        self.assertEqual(reply.code, 1)

    def test_an_exception_after_standard_output_was_closed_is_still_shown(self):
        self.assertIn("ZeroDivisionError", ask("import sys\nsys.stdout.close()\n1 / 0").text)

    def test_a_signal_that_ends_the_program_ends_the_agent_too(self):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
            with self.subTest(signal=number):
                reply = ask(f"import os\nprint('partial')\nos.kill(os.getpid(), {int(number)})")
                self.assertEqual((reply.text, reply.code, reply.finished), ("partial\n", -number, False))


class HowASessionGoes(unittest.TestCase):
    def text(self, process):
        return "".join(event.get("text", "") for event in reply(process))

    def test_request_after_request_is_answered(self):
        process = start("print('one')")
        self.assertEqual(reply(process), [{"type": "delta", "text": "one\n"}, {"type": "result"}])
        for message, text in {"1 + 1": "2\n", "hello": None, "print('three')": "three\n"}.items():
            say(process, message)
            said = self.text(process)
            self.assertEqual(said, text) if text else self.assertIn("This agent runs Python code", said)
        ended = finish(process)
        self.assertEqual((ended.code, ended.events, ended.err), (0, [], ""))

    def test_a_program_is_a_process_of_its_own_and_its_files_stay(self):
        with tempfile.TemporaryDirectory() as folder:
            process = start(f"import os; os.chdir({folder!r}); x = 1; open('kept', 'w').write('from before')")
            self.assertEqual(reply(process), [{"type": "result"}])
            say(process, f"import os\nprint('x' in globals(), os.getcwd() == {folder!r}, open({folder!r} + '/kept').read())")
            self.assertEqual(self.text(process), "False False from before\n")
            self.assertEqual(finish(process).code, 0)

    def test_what_a_program_left_running_does_not_speak_in_the_next_reply(self):
        process = start("import subprocess\np = subprocess.Popen(['sh', '-c', 'sleep 0.3; echo late; sleep 300'], stderr=subprocess.DEVNULL)\nprint(p.pid)")
        left = int(self.text(process))
        say(process, "import time; time.sleep(0.6); print('on time')")
        self.assertEqual(self.text(process), "on time\n")
        os.kill(left, signal.SIGKILL) if not has_ended(left) else None
        self.assertEqual(finish(process).code, 0)

    def test_files_are_not_used_up(self):
        process = start("pass")
        reply(process)
        opened = len(os.listdir(f"/proc/{process.pid}/fd"))
        for _ in range(5):
            say(process, "pass")
            reply(process)
        self.assertEqual(len(os.listdir(f"/proc/{process.pid}/fd")), opened)
        finish(process)

    def test_a_program_that_fails_ends_the_session(self):
        for program, code in {"raise SystemExit(3)": 3, "1 / 0": 1, "import os; os.kill(os.getpid(), 9)": -9}.items():
            with self.subTest(program=program):
                process = start("print('fine')")
                self.assertEqual(self.text(process), "fine\n")
                say(process, program)
                ended = finish(process)
                self.assertEqual((ended.code, ended.finished), (code, False))

    def test_a_line_that_is_no_request_ends_it(self):
        process = start("print('fine')")
        self.assertEqual(self.text(process), "fine\n")
        process.stdin.write(b"not json\n")
        self.assertEqual(finish(process).code, 64)


if __name__ == "__main__":
    unittest.main()
