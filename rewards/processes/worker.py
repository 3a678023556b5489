"""The process that runs the algebra: ``python -m rewards.processes.worker FD``, started by ``fork_server``.

One *fork server* process imports SymPy and compares a few expressions to warm up. It checks no answers: for
each request on its control socket it forks a worker that is equally warm, so that replacing a killed worker
costs milliseconds. A worker answers one request at a time on its own socket. It dies with the fork server
(kernel signal), and the fork server with its parent (end of file, or a change of parent).
"""

import array
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any

from rewards.answers.equivalence import equivalent
from rewards.answers.shapes import UnreadableError
from rewards.processes.functions import call_custom, call_reasoning_gym, import_module, inspect_function
from rewards.processes.sandbox import run_tests

HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1
_WARM_UP = (
    r"\frac{1}{2}", r"\frac{\sqrt{3}}{2}", r"10^{\frac{-5+\sqrt{13}}{6}}", "x^2+2x+1", "2ab-c_1",
    r"\sin(90-x)", r"2\sin b\cos a", r"f(x)", r"(x+1)^{30}", r"\binom{5}{2}", r"|3-5|", r"e^{i\pi}",
    r"11z^{7}(5+11z^{7})", r"\log_2 8", r"5!", r"\sqrt[3]{2}", r"3 \cdot 2", r"\ln 2", r"-\infty",
    r"\frac{x+2}{7}-3\pi", r"\sqrt{x^2+y^2}", "2x(x+1)", r"\sqrt{8}",
    r"\frac{1}{1+\frac{1}{x}}", r"\sum_{k=1}^{n} k^2", r"|x|^{\sqrt{2}}", r"\tan(x!)-\pi",
    r"\frac{d}{dx}\frac{d}{dx} e^{x}\sin x\cos x", r"\frac{x}{(x+1)!}", r"\prod_{k=1}^{30}\cos(kx)",
    r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} \begin{pmatrix} 1 & x \\ 0 & 1 \end{pmatrix}",
)  # fmt: skip


def read_message(connection: socket.socket) -> dict[str, Any] | None:
    """Returns the next message; None if the other side is gone."""
    header = _read_exactly(connection, HEADER.size)
    if header is None:
        return None
    body = _read_exactly(connection, HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(connection: socket.socket, size: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < size:
        piece = connection.recv(min(size - len(pieces), 1 << 20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


def write_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message as ASCII JSON, which preserves lone surrogates."""
    body = json.dumps(message).encode("ascii")
    connection.sendall(HEADER.pack(len(body)) + body)


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one task. All exceptions become a status."""
    try:
        return _TASKS[request["task"]](request)
    except UnreadableError as error:
        return {"status": "unparsable", "reason": str(error)}
    except RecursionError:
        return {"status": "unparsable", "reason": "It is nested too deeply."}
    except OverflowError:
        return {"status": "unparsable", "reason": "It has a number that is too large."}
    except MemoryError:
        return {"status": "error", "reason": "The check needed more than the memory limit."}
    # Model output in computer algebra, or a user's function, may raise anything: it becomes a verdict.
    except BaseException as error:
        return {"status": "error", "reason": f"{type(error).__name__}: {str(error)[:300]}"}


def _check(request: dict[str, Any]) -> dict[str, Any]:
    from rewards.answers.symbolic import SymPyAlgebra  # SymPy only in workers

    right = equivalent(
        gold=request["gold"],
        answer=request["answer"],
        algebra=SymPyAlgebra(),
        ordered_lists=request["ordered_lists"],
    )
    return {"status": "correct" if right else "wrong", "reason": ""}


def _parse(request: dict[str, Any]) -> dict[str, Any]:
    from rewards.answers.symbolic import check_value  # SymPy only in workers

    for text in request["expressions"]:
        check_value(text)
    return {"status": "parsed", "reason": ""}


def _numeric(request: dict[str, Any]) -> dict[str, Any]:
    from rewards.answers.symbolic import is_within  # SymPy only in workers

    right = is_within(
        request["gold"], request["answer"], relative=request["relative"], absolute=request["absolute"]
    )
    return {"status": "correct" if right else "wrong", "reason": ""}


_TASKS = {
    "check": _check,
    "parse": _parse,
    "numeric": _numeric,
    "import": import_module,
    "inspect": inspect_function,
    "custom": call_custom,
    "reasoning_gym": call_reasoning_gym,
    "code": run_tests,
}


def serve(connection: socket.socket) -> None:
    """Answers requests until the other side closes the connection."""
    while (request := read_message(connection)) is not None:
        result = answer_request(request)
        write_message(connection, {"number": request["number"], **result})


def _die_with_parent(parent: int) -> None:
    """Asks the kernel (Linux) to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)


def _become_worker(connection: socket.socket, fork_server: int, memory_bytes: int) -> None:
    _die_with_parent(fork_server)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.enable()
    serve(connection)


def _receive_request(control: socket.socket) -> tuple[int, int] | None:
    """Returns memory limit in bytes and socket of a new worker; None if the parent is gone."""
    data, ancillary, _, _ = control.recvmsg(HEADER.size * 2, socket.CMSG_SPACE(4))
    if not data:
        return None
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[:4])
    return struct.unpack(">Q", data)[0], descriptors[0]


def run_fork_server(control: socket.socket) -> None:
    """Forks one worker per request and replies with its process id; warms up between requests."""
    from rewards.answers.symbolic import SymPyAlgebra  # SymPy only in workers

    algebra = SymPyAlgebra()
    to_warm_up = list(_WARM_UP)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps dead workers
    parent, own = os.getppid(), os.getpid()
    while True:
        ready, _, _ = select.select([control], [], [], 0 if to_warm_up else 1.0)
        if os.getppid() != parent:
            return
        if not ready:
            if to_warm_up:
                text = to_warm_up.pop()
                with contextlib.suppress(UnreadableError):
                    algebra.same_expression(gold=text, answer=f"{text}+1")
                if not to_warm_up:
                    # Frozen objects are not touched by the collector, so workers keep sharing their pages.
                    gc.collect()
                    gc.freeze()
            continue
        request = _receive_request(control)
        if request is None:
            return
        memory_bytes, descriptor = request
        child = os.fork()
        if child == 0:
            control.close()
            try:
                _become_worker(socket.socket(fileno=descriptor), own, memory_bytes)
            finally:
                os._exit(0)
        os.close(descriptor)
        control.sendall(struct.pack(">Q", child))


def main() -> None:
    """Runs the fork server on the inherited socket; keyboard interrupts are left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.setrecursionlimit(3000)
    sys.set_int_max_str_digits(0)
    with contextlib.suppress(ConnectionError):
        run_fork_server(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
