"""How fast the web page answers; also makes its screenshot in the README.

    python -m benchmarks.page --checkpoint cv/attn_best.pt cv/lstm_best.pt cv/rnn_best.pt --out docs/images/page.png

Starts the page, opens it in a headless Chromium, clicks an example, and then a word. Prints the seconds from the start
of the process to the page, from the click on the example to the captions, and from the click on the word to the image
of where the model looked. Needs requirements-demo.txt, `pip install playwright`, and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", required=True)
    parser.add_argument("--word", type=int, default=6, help="which word to click, counted from 0 (%(default)s)")
    parser.add_argument("--out", help="the file for the screenshot")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    start = time.perf_counter()
    command = [sys.executable, "-m", "rnn_lstm_captioning", "demo", "--checkpoint", *args.checkpoint]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url = server.stdout.readline().split()[4]
        print(f"{time.perf_counter() - start:.1f} s from the command to the page")
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            rounds = [use(browser, url, args.word, args.out if k == 0 else None) for k in range(args.rounds)]
            browser.close()
    finally:
        server.terminate()
        server.wait()
    captions, looks = zip(*rounds)
    print(f"{captions[0]:.2f} s to the first captions, {statistics.median(captions):.2f} s to later ones (median)")
    print(f"{statistics.median(looks):.2f} s from a click on a word to where the model looked (median)")


def use(browser, url, word, out):
    """Returns: the seconds to the captions of an example, and to the attention image of a word."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    page.locator(".gallery-item img").last.wait_for()
    start = time.perf_counter()
    page.locator(".gallery-item").nth(2).click()
    page.locator("figcaption").last.wait_for()
    between = time.perf_counter()
    page.locator("fieldset").first.get_by_role("radio").nth(word).check()
    page.get_by_text("Instead of").first.wait_for()
    end = time.perf_counter()
    if out:
        page.wait_for_timeout(500)  # until all animations have ended
        page.screenshot(path=out, full_page=True)
    page.close()
    return between - start, end - between


if __name__ == "__main__":
    main()
