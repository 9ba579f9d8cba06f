"""The agent `python`: runs the Python code in a message and streams what it prints.

Speaks the agent protocol with `input = "json"` and `output = "events"`: one request line on standard input, one JSON
object a line on standard output. It answers request after request until standard input ends: in a kept session
(`session = "conversation"`) those of one conversation, else there is one. Each program is a process of its own; what it
leaves in its working directory, `/workspace`, is there for the next. What a message is:

- Python code, when all of it parses as Python and can do something. A message of nothing but expressions without a call
  cannot print: if it is a single expression over known names (`1 + 1`), its value is shown as the Python prompt would
  show it; if it is a bare name or uses names that nobody defined (`hello`, `thanks, bye`, `안녕하세요`), it is text.
- Text with fenced code: all blocks marked ```python, ```py or ``` run in order, as one program whose line numbers
  are those of the message. Blocks in another language are not run, and the reply says so.
- Anything else is text: the reply explains what this agent does.

The program runs in a forked child, so that everything imported here is there at once. The child's standard output is a
pipe that this process turns into events; its standard error is the container's. An uncaught exception's traceback goes
to both. A program that fails ends this process, too: the exit code is the program's, or the signal that ended it.
"""

import ast
import atexit
import builtins
import codecs
import gc
import json
import linecache
import os
import re
import select
import signal
import sys
import traceback
import types

SOURCE = "<message>"
READ_SIZE = 32 * 1024
# More than a pipe can hold for a user without privileges: what a program left behind when it ended is below it.
PIPE_LIMIT = 1024 * 1024
EXIT_BAD_REQUEST = 64
EXIT_FLUSH = 120  # what Python itself exits with when its last words cannot be written

FENCE = re.compile(r"^([ \t]*)(`{3,})[ \t]*([^\s`]*)[^`]*$")
PYTHON_FENCES = {"", "python", "py", "python3"}
HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")

EXPLANATION = {
    "en": (
        "This agent runs Python code. Send it a program such as `print(1 + 1)`, or text with a ```python block, and it "
        "runs that in a container of its own and shows what it prints. It is no language model: text without code gets "
        "this answer.\n"
    ),
    "ko": (
        "이 에이전트는 파이썬 코드를 실행합니다. `print(1 + 1)` 같은 프로그램이나 ```python 블록이 들어 있는 글을 보내면 "
        "전용 컨테이너에서 실행하고 출력을 보여 줍니다. 언어 모델이 아니므로 코드가 없는 글에는 이 안내로 답합니다.\n"
    ),
}
NOT_RUN = {
    "en": "[not run, only Python is: {languages}]\n",
    "ko": "[실행하지 않음, 파이썬만 실행합니다: {languages}]\n",
}


def plan(message):
    """Splits a message into (program or None, languages of the blocks that are not run)."""
    tree = parse(message)
    if tree is not None and is_code(tree):
        return message, []
    return fenced_program(message)


def parse(source):
    try:
        return ast.parse(source, SOURCE)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_code(tree):
    """Whether running the parsed message can do more than fail on a word that it takes for a name."""
    if not tree.body:
        return False
    words = (ast.Expr, ast.AnnAssign)  # `Note: hello` parses as an annotation
    if not all(isinstance(node, words) and getattr(node, "simple", 1) for node in tree.body):
        return True
    nodes = list(ast.walk(tree))
    if any(isinstance(node, (ast.Call, ast.Await)) for node in nodes):
        return True
    if any(isinstance(node, ast.AnnAssign) and node.value is not None for node in nodes):
        return True
    if all(isinstance(node.value, ast.Name) for node in tree.body):
        return False
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound.update(node.arg for node in nodes if isinstance(node, ast.arg))
    return all(node.id in bound or hasattr(builtins, node.id) for node in names)


def compiled(program):
    """The program's code; of a lone expression without a call the value is shown, for it can have no other effect."""
    tree = ast.parse(program, SOURCE)
    lone = tree.body[0] if len(tree.body) == 1 else None
    if isinstance(lone, ast.Expr) and not any(isinstance(node, (ast.Call, ast.Await)) for node in ast.walk(lone)):
        return compile(ast.Interactive(tree.body), SOURCE, "single")
    return compile(program, SOURCE, "exec")


def fenced_program(message):
    """Joins the Python blocks of a text; every other line becomes an empty one, which keeps the line numbers."""
    program, others, found = [], [], False
    fence = None  # (indent, backticks, runs) while inside a block
    for line in message.split("\n"):
        line = line.removesuffix("\r")
        mark = FENCE.match(line)
        kept = ""
        if fence is None:
            if mark:
                language = mark[3].lower()
                runs = language in PYTHON_FENCES
                fence = (len(mark[1]), len(mark[2]), runs)
                found = found or runs
                if not runs:
                    others.append(language)
        elif mark and len(mark[2]) >= fence[1] and not mark[3]:
            fence = None
        elif fence[2]:
            outdent = min(fence[0], len(line) - len(line.lstrip(" \t")))
            kept = line[outdent:]
        program.append(kept)
    return ("\n".join(program) if found else None), others


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def emit(kind, **fields):
    line = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    write_all(1, line.encode("utf-8", "replace") + b"\n")


def report(text):
    """Shows why the program ended both to the user (in the reply) and to the operator (in the run's log)."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        pass  # the program closed or replaced its standard output
    for fd in (1, 2):
        try:
            write_all(fd, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass


def user_traceback(error):
    """The traceback as Python prints it, without the frames of this file and of the libraries."""
    shown = traceback.TracebackException.from_exception(error)
    pending, seen = [shown], set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.stack[:] = [frame for frame in each.stack if frame.filename == SOURCE]
        pending += [each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())]
    return "".join(shown.format())


def execute(program):
    """Runs the program as the module `__main__` and returns its exit code."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [SOURCE]
    sys.path[0] = ""  # the working directory, as with `python3 -c`, not the folder of this file
    linecache.cache[SOURCE] = (len(program), None, program.splitlines(keepends=True), SOURCE)
    try:
        exec(compiled(program), module.__dict__)
    except SystemExit as stop:
        if stop.code is None:
            return 0
        if isinstance(stop.code, int):
            return stop.code & 0xFF
        report(f"{stop.code}\n")
        return 1
    except BaseException as error:
        try:
            report(user_traceback(error))
        except BaseException:  # no memory or no stack left to format it with, or a broken __str__
            report(f"{type(error).__name__}\n")
        return 1
    return 0


def child(program, out):
    """Turns the forked process into the program's own; it then ends as any Python program does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.closerange(3, 64)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    # Line by line, as at a terminal: a print appears at once, and a long loop of small writes stays cheap.
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, encoding="utf-8", closefd=False)
    leave(execute(program))


def leave(code):
    """Ends the process as Python ends: threads are waited for, exit functions run, what the program left open is written.

    Only the interpreter itself is not taken apart: that takes longer than a short program, and this process is a copy
    whose memory the kernel takes back at once.
    """
    threading = sys.modules.get("threading")
    if threading:
        threading._shutdown()  # as the interpreter calls it; there is no public way
    atexit._run_exitfuncs()
    module = sys.modules.get("__main__")
    if isinstance(module, types.ModuleType):
        vars(module).clear()
    gc.collect()  # what is left in cycles; quick, because everything older than the program is frozen
    for stream in (sys.stdout, sys.stderr):
        try:
            if not getattr(stream, "closed", True):
                stream.flush()
        except Exception:  # nobody reads it, or it is the program's own and broken
            code = EXIT_FLUSH
    os._exit(code)


def forward(source, wake, pid):
    """Turns the child's output into deltas until the child has ended; returns its wait status.

    A process that the program left behind may hold the pipe open for ever, so the end of the child ends the run,
    after what is in the pipe by then.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def pass_on(data, final=False):
        text = decoder.decode(data, final)
        if text:
            emit("delta", text=text)

    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    waiting.register(wake, select.POLLIN)
    status = None
    while status is None:
        ready = [fd for fd, _ in waiting.poll()]
        if source in ready:
            data = os.read(source, READ_SIZE)
            if data:
                pass_on(data)
            else:
                waiting.unregister(source)
        if wake in ready:
            os.read(wake, 64)
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None

    os.set_blocking(source, False)
    left = PIPE_LIMIT
    while left > 0:
        try:
            data = os.read(source, READ_SIZE)
        except BlockingIOError:
            break
        if not data:
            break
        left -= len(data)
        pass_on(data)
    pass_on(b"", final=True)
    return status


def end_like(status):
    """Ends this process as a child that failed ended, so that the engine sees the same exit code or signal."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        emit("result")
        return
    if code < 0:
        number = -code
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Still here: the first process of a container is deaf to its own signals. This is the code a shell gives.
        os._exit(128 + number)
    sys.exit(code)


def run(program):
    """Runs a program and answers with its output; returns only when it ended well."""
    source, out = os.pipe()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only the wake-up matters, and without a handler there is none
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        child(program, out)
    os.close(out)
    try:
        status = forward(source, wake, pid)
    except BrokenPipeError:  # nobody reads the reply any more
        os.kill(pid, signal.SIGKILL)
        sys.exit(1)
    signal.set_wakeup_fd(-1)
    # What the program left running writes to nobody from here on.
    for fd in (source, wake, waker):
        os.close(fd)
    end_like(status)


def message_of(line):
    try:
        message = json.loads(line)["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    if not isinstance(message, str):
        print("the request is not a JSON object with a `message`", file=sys.stderr)
        sys.exit(EXIT_BAD_REQUEST)
    return message


def answer(message):
    words = "ko" if HANGUL.search(message) else "en"
    program, others = plan(message)
    if others:
        emit("delta", text=NOT_RUN[words].format(languages=", ".join(others)))
    if program is None:
        emit("delta", text=EXPLANATION[words])
        emit("result")
    else:
        run(program)


def main():
    line = sys.stdin.buffer.readline()
    while True:
        answer(message_of(line))
        line = sys.stdin.buffer.readline()
        if not line:
            break


if __name__ == "__main__":
    main()
