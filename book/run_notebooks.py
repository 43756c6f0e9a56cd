"""Executes notebooks from top to bottom, each in a fresh kernel.

evcxr answers a panic, a failed assertion and a `?` error with the status "ok", so a
cell fails here when the reply is not ok, when there is an error message, or when
anything was written to stderr. Ends with "N passed, N failed".
"""

import argparse
import json
import os
import queue
import re
import sys
import time

from jupyter_client.manager import start_new_kernel

START_SECONDS = 300
CELL_SECONDS = 1800
# A cell's last lines may come after its reply.
QUIET_SECONDS = 0.4


def execute(client, code):
    """Runs a cell; what it printed, and what went wrong."""
    request = client.execute(code)
    deadline = time.monotonic() + CELL_SECONDS
    printed, wrong = [], []
    reply, idle = None, False
    while True:
        if time.monotonic() > deadline:
            return printed, wrong + [f"no answer within {CELL_SECONDS} s"]
        try:
            message = client.get_iopub_msg(timeout=QUIET_SECONDS)
        except queue.Empty:
            if reply is None:
                try:
                    answer = client.get_shell_msg(timeout=QUIET_SECONDS)
                except queue.Empty:
                    if not client.is_alive():
                        return printed, wrong + ["the kernel died"]
                    continue
                if answer["parent_header"].get("msg_id") == request:
                    reply = answer["content"]
                    if reply["status"] != "ok":
                        wrong.append(f"replied {reply['status']}")
            elif idle:
                return printed, wrong
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            idle = content["execution_state"] == "idle"
        elif kind == "error":
            lines = content.get("traceback") or [content.get("evalue", "")]
            wrong.append(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)))
        elif kind == "stream" and content["name"] == "stderr":
            if content["text"].strip():
                wrong.append(content["text"].rstrip("\n"))
        elif kind == "stream":
            printed.append(content["text"])
        elif kind in ("execute_result", "display_data"):
            data = content["data"]
            printed.append(data.get("text/plain", f"[{', '.join(data)}]") + "\n")


def run(path, kernel, folder, verbose):
    """Runs a notebook; the number of cells, and the first failure."""
    with open(path, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    manager, client = start_new_kernel(
        kernel_name=kernel, cwd=folder, startup_timeout=START_SECONDS
    )
    count = 0
    try:
        for cell in cells:
            if cell["cell_type"] != "code":
                continue
            count += 1
            began = time.monotonic()
            printed, wrong = execute(client, "".join(cell["source"]))
            seconds = time.monotonic() - began
            if verbose:
                print(f"  cell {count}: {seconds:.1f} s", flush=True)
                sys.stdout.write("".join(printed))
            expected = "raises-exception" in cell.get("metadata", {}).get("tags", [])
            if bool(wrong) != expected:
                code = "".join(cell["source"])
                what = "\n".join(wrong) or "was expected to fail and did not"
                return count, f"cell {count}:\n{code}\n---\n{''.join(printed)}{what}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
    return count, None


def warm_up(path, kernel, folder):
    """Runs all cells; only the last, a deliberate error, may fail."""
    with open(path, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    manager, client = start_new_kernel(
        kernel_name=kernel, cwd=folder, startup_timeout=START_SECONDS
    )
    try:
        for number, cell in enumerate(cells):
            printed, wrong = execute(client, cell["source"])
            if bool(wrong) != (number == len(cells) - 1):
                print(cell["source"], *printed, *wrong, sep="\n")
                return 1
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--cwd", help="default: the notebook's own folder")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("notebooks", nargs="+")
    args = parser.parse_args()
    passed = failed = 0
    for path in args.notebooks:
        folder = args.cwd or os.path.dirname(os.path.abspath(path))
        if args.warm_up:
            sys.exit(warm_up(path, args.kernel, folder))
        name = os.path.basename(path)
        began = time.monotonic()
        try:
            count, failure = run(path, args.kernel, folder, args.verbose)
        except Exception as error:  # a kernel that does not start is a failure too
            count, failure = 0, f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        if failure is None and count > 0:
            passed += 1
            print(f"ok     {name}: {count} cells in {seconds:.0f} s", flush=True)
        else:
            failed += 1
            print(f"FAILED {name}: {failure or 'it has no code'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
