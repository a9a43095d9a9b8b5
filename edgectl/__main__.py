"""Entry of `edgectl`: the error boundary. Nothing heavy is imported here, so that help is instant.

Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted; `exec` passes the command's code on.
"""

import os
import sys

from edgectl.errors import CliError, InvalidFiles

INTERRUPTED = 130
PIPE_CLOSED = 141  # what a shell shows for SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one command. Never raises, except SystemExit from the argument parser."""
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log lines are not for operators
    try:
        from edgectl.cli import run

        code = run(arguments)
        sys.stdout.flush()
        return code
    except CliError as error:
        return _explain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(
            CliError(
                f"unexpected {type(error).__name__}: {error}",
                "this is a defect of edgectl; run it with --debug for the details to report",
            )
        )


def _explain(error: CliError) -> int:
    try:
        sys.stdout.flush()
        if isinstance(error, InvalidFiles):
            for line in error.lines:
                print(line, file=sys.stderr)
        print(f"error: {error.message}", file=sys.stderr)
        for hint in error.hints:
            print(f"  {hint}", file=sys.stderr)
    except BrokenPipeError:
        _forget_stdout()
    return error.exit_code


def _forget_stdout() -> None:
    """The reader has gone: keep the interpreter from complaining when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


if __name__ == "__main__":
    sys.exit(main())
