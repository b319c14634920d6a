"""Run python -m rnn_lstm_captioning COMMAND, or, if the package is installed, rnn-lstm-captioning COMMAND."""

import importlib
import sys

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
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: rnn_lstm_captioning COMMAND [--help]\n")
        print("\n".join(f"  {command:<9}{what}" for command, (_, what) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"rnn_lstm_captioning: there is no command {name}: use {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    from .commands.common import run_command

    command = importlib.import_module(f".commands.{COMMANDS[name][0]}", __package__)
    sys.argv = [f"rnn_lstm_captioning {name}", *sys.argv[2:]]
    run_command(command.main)


if __name__ == "__main__":
    main()
