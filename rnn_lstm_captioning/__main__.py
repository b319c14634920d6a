"""Run python -m rnn_lstm_captioning COMMAND, or, if the package is installed, rnn-lstm-captioning COMMAND."""

import importlib
import signal
import sys
from typing import Any

COMMANDS = {  # name -> its module, and what it does
    "train": ("train", "train a captioner (the same as train_*.py, for every cell)"),
    "test": ("test", "evaluate a checkpoint, or caption your own images (the same as test_*.py)"),
    "build": ("build", "make a caption file from images and their captions"),
    "check": ("check", "check your own functions for the cells"),
    "inspect": ("inspecting", "look inside a trained captioner"),
    "demo": ("demo", "a web page to try captioners"),
}


def main() -> None:
    """Run the command that the first argument names."""
    from .commands import common

    common.prepare_output()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:<9}{what}\n" for command, (_, what) in COMMANDS.items()]
        return common.show("usage: rnn_lstm_captioning COMMAND [--help]\n\n" + "".join(lines), sys.stdout)
    if name not in COMMANDS:
        common.warn(f"rnn_lstm_captioning: there is no command {name}: use {', '.join(COMMANDS)}")
        sys.exit(2)
    sys.argv = [f"rnn_lstm_captioning {name}", *sys.argv[2:]]
    run(name)


def run(name: str, **options: Any) -> None:
    """Run a command as a program; all scripts call this. Args: options, for the command's main function.

    Until torch is imported, which takes seconds, Ctrl-C ends the process as it ends a program in C. Wrong flags and
    --help are answered before that.
    """
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(sys.path.pop(0))  # so that a file numpy.py beside the script does not hide the library
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .commands import common, flags

    common.prepare_output()
    flags.PARSERS[name](**options).parse_args()
    command = importlib.import_module(f".commands.{COMMANDS[name][0]}", __package__)
    signal.signal(signal.SIGINT, previous)
    common.run_command(lambda: command.main(**options), keep_memory=name != "demo")


if __name__ == "__main__":
    main()
