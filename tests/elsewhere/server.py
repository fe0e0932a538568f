"""Runs pages one after the other, each in a new process that has already imported what it will need

Importing torch and fastai takes longer than the rest of a short page. A line of standard input names a page;
the answer is a line of JSON with its exit status, None for a page that had to be stopped, and what it wrote
to stderr. Arguments: the seconds that a page may take, and the modules.
"""
import json, os, signal, subprocess, sys, tempfile, time
from importlib import import_module
from pathlib import Path
from nbdev.test import nbdev_test

def become_page(page, stderr):
    "Run the page in this process, with a session of its own, so that all that it starts can be stopped"
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream, file in enumerate((nowhere, nowhere, stderr)): os.dup2(file, stream)
    nbdev_test(page, n_workers=0, cell_timeout=0)
    sys.exit()

def start(page, stderr):
    "The process id of a page that runs now"
    if sys.platform == 'darwin':    # Apple's libraries do not survive a fork
        script = Path(sys.executable).with_name('nbdev-test')
        command = [script, page, '--n-workers', '0', '--cell-timeout', '0']
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True).pid
    pid = os.fork()
    if pid == 0: become_page(page, stderr)
    return pid

def wait(pid, limit):
    "Exit status of a process, or None if it had to be stopped after `limit` seconds"
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended: return os.waitstatus_to_exitcode(status)
        time.sleep(.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def serve(limit):
    for line in sys.stdin:
        with tempfile.TemporaryFile('w+') as stderr:
            status = wait(start(line.strip(), stderr.fileno()), limit)
            stderr.seek(0)
            print(json.dumps([status, stderr.read()]), flush=True)

if __name__ == '__main__':
    limit, *modules = sys.argv[1:]
    for module in modules: import_module(module)
    serve(float(limit))
